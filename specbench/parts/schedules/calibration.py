"""How fast target and draft are beside each other, and what settings this makes right."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from specbench.engine.sampling import SamplingLaw
from specbench.measure.sensors.clock import now
from specbench.parts.drafts.choice import at_once

MAX_LENGTH = 16  # of an automatic draft length
CONTEXT, SECONDS = 128, 0.3  # tokens behind which forwards are measured, and for how long
_WARM_UP = 5  # forwards that are not counted


@dataclass(frozen=True)
class Calibration:
    """An order to measure instead of decoding: forwards of so many rows behind `context_length` tokens for about `seconds`."""

    context_length: int
    seconds: float
    num_rows: int = 1


def forward_timer(session: Any, order: Calibration, tokens_at_once: int = 0) -> Callable[[], float]:
    """What measures the seconds of a forward, its argmax read, as a step of decoding does: the lower quartile.

    What else runs on the machine makes forwards longer, never shorter; the quartile sees little of it. What takes long before
    a forward can be timed is done here (a backend may compile). tokens_at_once: a single row is timed as one token of a chain
    of so many that is drafted as one program, where the session can (`drafts.choice.at_once`); 0: never.
    """
    context, rows = order.context_length, order.num_rows
    length = tokens_at_once if rows == 1 and "chain" in session.can else 0
    ids = [(37 * i + 11) % session.model.vocab_size for i in range(context + rows)]
    session.start(len(ids) + length)
    session.feed(ids[:context], last_only=True)

    def forward() -> None:
        if length:
            list(at_once(session, ids[context:], length, SamplingLaw(), 0, 0) or ())
        else:
            session.feed(ids[context:]).argmax(-1).tolist()
        session.rollback(context)

    forward()  # what is met for the first time has its program before it is timed
    session.warm(() if length else (rows,))

    def measure() -> float:
        times: list[float] = []
        begin = now()
        while len(times) < 2 * _WARM_UP or now() - begin < order.seconds:
            start = now()
            forward()
            times.append(now() - start)
        return statistics.quantiles(times[_WARM_UP:], n=4)[0] / max(1, length)

    return measure


def balanced_length(draft_seconds: float, target_seconds: Callable[[int], float]) -> int:
    """The rounded ratio of the target's forward to the draft's, with as many rows as the target then verifies (PEARL,
    2408.11850, section 5).

    A forward over more rows can take longer (on a CPU it does), so the ratio is taken again until it stays the same; never
    more than four times, in 1 to MAX_LENGTH.
    """
    length = 1
    for _ in range(4):
        ratio = round(target_seconds(length) / draft_seconds)
        better = max(1, min(MAX_LENGTH, ratio))
        if better == length:
            break
        length = better
    return length


def largest_fitting(sizes: Iterable[int], seconds: Callable[[int], float], limit_seconds: float) -> int:
    """The largest of `sizes` (ascending) whose seconds stay within the limit, or the first; measured until one does not."""
    best = 0
    for size in sizes:
        if best and seconds(size) > limit_seconds:
            break
        best = size
    return best
