"""What a target's forward costs by the number of its rows, on this machine: what the size of a draft tree is chosen by."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from specbench.engine.session import Session
from specbench.measure.clock import clock_for

ROWS = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64)
_CONTEXT = 64  # tokens behind which the rows are fed
_WARM_UP = 3  # forwards that are not counted


def lower_quartile_seconds(step: Callable[[], Any], device: str, repeats: int) -> float:
    """Seconds that `step` takes. Other load makes it longer, never shorter: the quartile sees little of it."""
    times = []
    clock = clock_for(device)
    for _ in range(_WARM_UP + repeats):
        clock.synchronize()
        stamps = [clock.stamp()]
        step()
        stamps.append(clock.stamp())
        times.append(clock.seconds(stamps)[1])
    return statistics.quantiles(times[_WARM_UP:], n=4)[0]


def measure_row_seconds(session: Session, rows: Sequence[int] = ROWS, repeats: int = 9) -> dict[int, float]:
    """Seconds of one forward by its number of rows, argmax read, behind 64 tokens; the session is left empty.

    More than one row is fed as a tree of depth one (with a mask), or as a chain to a model that takes chains only.
    """
    model, device = session.model, str(session.model.device)
    session.start(_CONTEXT + max(rows))
    session.feed([(37 * i + 11) % model.vocab_size for i in range(_CONTEXT)], last_only=True)
    costs = {}
    for count in rows:
        ids = [(11 * i + 3) % model.vocab_size for i in range(count)]
        parents = [-1, *[0] * (count - 1)] if model.tree_refusal is None else None

        def step(ids: list[int] = ids, parents: list[int] | None = parents) -> None:
            session.feed(ids, parents).argmax(-1).tolist()
            session.rollback(_CONTEXT)

        costs[count] = lower_quartile_seconds(step, device, repeats)
    session.start(0)
    return costs
