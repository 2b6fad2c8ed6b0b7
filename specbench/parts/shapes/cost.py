"""What a target's forward costs by the number of its rows, and whole rounds by their draft: what a tree's size rests on."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from specbench.engine.session import Session
from specbench.engine.target import Target
from specbench.engine.tree import DraftTree, Verdict
from specbench.measure.sensors.clock import clock_for
from specbench.parts.rules.chain import path_to
from specbench.parts.shapes.static import never_falling

ROWS = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64)
MAX_NODES = max(ROWS) - 1  # of a tree whose size is chosen by measurement
_CONTEXT = 192  # tokens behind which the rows are fed: a prompt and half a reply
_WARM_UP = 2  # turns that are not counted
_TURNS = 16


def measure_costs(
    session: Target, drafting: Sequence[Callable[[], Any]] = (), rows: Sequence[int] = ROWS, turns: int = _TURNS
) -> tuple[dict[int, float], list[float]]:
    """Seconds of one target forward by its number of rows, and of each drafting step; the session is left empty.

    A forward is fed behind 192 tokens and its argmax read; more than one row is a tree of depth one (with a mask), or a chain
    for a model that takes chains only. drafting: steps in order of their size. The speed of a machine drifts by more than a
    few rows cost, so nothing is timed in one piece: every turn times each forward and step once, in an order of its own. The
    lower quartile of the turns counts (other load makes a time longer, never shorter), and more never costs less.
    """
    model, device = session.model, str(session.model.device)
    assert isinstance(session, Session), "rows are timed by going back"
    context = fill(session, max(rows), rows)

    def forward(count: int) -> None:
        parents = [-1, *[0] * (count - 1)] if model.tree_refusal is None else None
        session.feed([(11 * i + 3) % model.vocab_size for i in range(count)], parents=parents).argmax(-1).tolist()
        session.rollback(context)

    sizes = sorted(set(rows))
    steps = [*(lambda count=count: forward(count) for count in sizes), *drafting]
    times = interleaved_seconds(steps, device, turns)
    session.start(0)
    forwards, drafts = never_falling(times[: len(sizes)]), never_falling(times[len(sizes) :])
    return dict(zip(sizes, forwards, strict=True)), drafts


def measure_rounds(session: Target, drafts: Sequence[Callable[[], DraftTree]]) -> list[float]:
    """Seconds of a whole round with each draft: drafting, the target's forward, its choice read, one path of the tree kept.

    drafts: each returns what it drafts, at most MAX_NODES nodes. What a tree costs is not its rows alone: a larger one takes
    longer to draft, and drafting drives the target's weights out of the processor's cache. Timed as in `measure_costs`, but not
    made monotonous; the session is left empty.
    """

    assert isinstance(session, Session), "rows are timed by going back"

    def round_with(draft: Callable[[], DraftTree]) -> None:
        session.pending = 1 % session.model.vocab_size
        tree = draft()
        choice = session.forward(tree).logits.argmax(-1).tolist()
        path = path_to(tree, len(tree.tokens) - 1)
        session.commit(Verdict(path, (*(tree.tokens[node] for node in path), choice[-1])))
        session.rollback(context)

    context = fill(session, 1 + MAX_NODES)
    times = interleaved_seconds([partial(round_with, draft) for draft in drafts], str(session.model.device))
    session.start(0)
    return times


def fill(session: Session, more: int, rows: Sequence[int] = ROWS) -> int:
    """Feed the tokens that everything is measured behind, with room for `more` rows; returns how many (fewer where the model
    has no positions for more). rows: numbers of rows that will be timed.
    """
    model = session.model
    context = _CONTEXT if model.context_length is None else max(1, min(_CONTEXT, model.context_length - more))
    session.start(context + more)
    session.feed([(37 * i + 11) % model.vocab_size for i in range(context)], last_only=True)
    session.warm(range(1, more + 1) if more <= 2 else rows)
    return context


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
