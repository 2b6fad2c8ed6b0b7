"""What a target's forward costs by the number of its rows, and drafting beside it: what the size of a draft tree rests on."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from specbench.engine.session import Session
from specbench.measure.clock import clock_for

ROWS = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64)
_CONTEXT = 64  # tokens behind which the rows are fed
_WARM_UP = 2  # turns that are not counted
_TURNS = 16


def measure_costs(
    session: Session, drafting: Sequence[Callable[[], Any]] = (), rows: Sequence[int] = ROWS
) -> tuple[dict[int, float], list[float]]:
    """Seconds of one target forward by its number of rows, and of each drafting step; the session is left empty.

    A forward is fed behind 64 tokens and its argmax read; more than one row is a tree of depth one (with a mask), or a chain
    for a model that takes chains only. drafting: steps in order of their size. The speed of a machine drifts by more than a
    few rows cost, so nothing is timed in one piece: every turn times each forward and step once, in an order of its own. The
    lower quartile of the turns counts (other load makes a time longer, never shorter), and more never costs less.
    """
    model, device = session.model, str(session.model.device)
    session.start(_CONTEXT + max(rows))
    session.feed([(37 * i + 11) % model.vocab_size for i in range(_CONTEXT)], last_only=True)

    def forward(count: int) -> None:
        parents = [-1, *[0] * (count - 1)] if model.tree_refusal is None else None
        session.feed([(11 * i + 3) % model.vocab_size for i in range(count)], parents).argmax(-1).tolist()
        session.rollback(_CONTEXT)

    sizes = sorted(set(rows))
    steps = [*(lambda count=count: forward(count) for count in sizes), *drafting]
    times = interleaved_seconds(steps, device)
    session.start(0)
    forwards, drafts = never_falling(times[: len(sizes)]), never_falling(times[len(sizes) :])
    return dict(zip(sizes, forwards, strict=True)), drafts


def interleaved_seconds(steps: Sequence[Callable[[], Any]], device: str, turns: int = _TURNS) -> list[float]:
    """Seconds of each step: the lower quartile over turns, each of which runs all steps in a seeded random order."""
    clock, draw = clock_for(device), random.Random(0)
    times: list[list[float]] = [[] for _ in steps]
    for turn in range(_WARM_UP + turns):
        for index in draw.sample(range(len(steps)), len(steps)):
            clock.synchronize()
            stamps = [clock.stamp()]
            steps[index]()
            stamps.append(clock.stamp())
            if turn >= _WARM_UP:
                times[index].append(clock.seconds(stamps)[1])
    return [statistics.quantiles(values, n=4)[0] for values in times]


def never_falling(values: Sequence[float]) -> list[float]:
    """The nearest sequence in squares that never falls: where it did, the mean (Ayer et al. 1955: pool adjacent violators)."""
    blocks: list[tuple[float, int]] = []  # mean, length
    for value in values:
        mean, length = value, 1
        while blocks and blocks[-1][0] > mean:
            before, count = blocks.pop()
            mean, length = (mean * length + before * count) / (length + count), length + count
        blocks.append((mean, length))
    return [mean for mean, length in blocks for _ in range(length)]
