"""Forwards of a real model, timed as a round makes them, behind several contexts, and the points of a curve that they make."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from specbench.engine.sampling import SamplingLaw
from specbench.engine.target import open_session, open_target
from specbench.engine.tree import DraftTree, Verdict
from specbench.measure.sensors.clock import clock_for
from specbench.parts.rules.rule import RULES

CHAIN = 4  # forwards in a row, as a round has a draft's
PREFILL_ROWS = (8, 32, 128, 512, 1024)
GREEDY = SamplingLaw()


class Forwards:
    """Timed forwards of one model behind several contexts, each on a session of its own."""

    def __init__(self, model: Any, contexts: Sequence[int], room: int, is_target: bool):
        self.model, self.clock, self.is_target = model, clock_for(str(model.device)), is_target
        length = model.context_length
        self.contexts = [c for c in contexts if length is None or c + room <= length] or [max(1, (length or 2 * room) - room)]
        self.sessions: dict[int, Any] = {}
        for context in self.contexts:
            self.sessions[context] = session = open_target(model) if is_target else open_session(model)
            session.start(context + room + CHAIN + 1)
            session.feed(self.ids(context), last_only=True)

    def ids(self, count: int, start: int = 0) -> list[int]:
        return [(37 * (start + i) + 11) % self.model.vocab_size for i in range(count)]

    def timed(self, action: Callable[[], Any]) -> float:
        self.clock.synchronize()
        stamps = [self.clock.stamp()]
        action()
        stamps.append(self.clock.stamp())
        return self.clock.seconds(stamps)[1]

    def verify(self, rows: int, context: int) -> float:
        """A target's round: forward over pending and drafts, verdict, what is kept; of plain ones the mean of a chain."""
        session, tree, count = self.sessions[context], DraftTree(self.ids(rows - 1, context)), CHAIN if rows == 1 else 1
        session.pending = self.ids(1)[0]

        def rounds() -> None:
            for _ in range(count):
                evidence = session.forward(tree)
                RULES["greedy_match"].judge(tree, evidence, GREEDY, 1, 0, None)
                session.commit(Verdict((), (session.pending,)))

        seconds = self.timed(rounds)
        session.rollback(context)
        return seconds / count

    def draft(self, rows: int, context: int) -> float:
        """A draft forward: of more than one row by itself, of one row the mean of a chain."""
        session, count = self.sessions[context], CHAIN if rows == 1 else 1

        def chain() -> None:
            for number in range(count):
                logits = session.feed(self.ids(rows, context + number), last_only=True)
                GREEDY.choose(logits, [number + 1], 0)

        seconds = self.timed(chain)
        session.rollback(context)
        return seconds / count

    def step(self, rows: int, context: int) -> float:
        return self.verify(rows, context) if self.is_target else self.draft(rows, context)

    def prefill(self) -> list[list[float]]:
        """Points of whole prompts, on sessions of their own."""
        length, session = self.model.context_length, open_target(self.model) if self.is_target else open_session(self.model)
        points = []
        for rows in (r for r in PREFILL_ROWS if length is None or r <= length):
            times = []
            for _ in range(4):
                session.start(rows)
                times.append(self.timed(lambda rows=rows: session.feed(self.ids(rows), last_only=True).argmax(-1).tolist()))  # type: ignore[misc]
            points.append([rows, 0, 1, statistics.median(times[1:])])
        return points


class Points:
    """The times of one curve's points. before: what was there last, called with the context, not timed.

    Every turn does every point once, in an order of its own, the first turn to warm up.
    """

    def __init__(self, forwards: Forwards, rows: Sequence[int], before: Callable[[int], Any] = lambda context: None):
        self.forwards, self.before = forwards, before
        self.times: dict[tuple[int, int], list[float]] = {(r, c): [] for r in rows for c in forwards.contexts}
        self._draw, self._left = random.Random(0), list[tuple[int, int]]()

    def next(self) -> None:
        if not self._left:
            self._left = self._draw.sample(list(self.times), len(self.times))
        place = self._left.pop()
        self.before(place[1])
        self.times[place].append(self.forwards.step(*place))

    def turn(self) -> None:
        for _ in self.times:
            self.next()

    def found(self) -> list[list[float]]:
        """[rows, context, 1, seconds] of each."""
        return [[r, c, 1, statistics.median(values[1:] or values)] for (r, c), values in self.times.items()]
