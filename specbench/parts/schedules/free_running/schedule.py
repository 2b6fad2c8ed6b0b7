"""The free-running schedule: both sides, started and reported on."""

from __future__ import annotations

import math

from specbench.config.options import ConfigError, one_of, whole
from specbench.engine.request import Outcome, Request
from specbench.engine.tree import MOST_NODES
from specbench.parts.contracts import Parts, Setting
from specbench.parts.schedules.free_running.draft import DraftSide
from specbench.parts.schedules.free_running.verify import STALE_POLICIES, Verifier, book_draft_report
from specbench.parts.schedules.two_sides import Exchange, TwoSides
from specbench.parts.stops import make_stop
from specbench.processes.steps import Order


class FreeRunning(TwoSides):
    """waits_for: drafts that the target waits for before it verifies; None: as many as are drafted during one of its forwards,
    measured, and at most max_lookahead. stale: see `Verifier`. stop: see `make_stop`; of the draft's side.

    Raises ConfigError for values out of range.
    """

    name, form = "free-running", "chain"

    def __init__(self, waits_for: int | None, max_lookahead: int, stale: str, draft_cores: int, stop: object):
        whole("method.draft_length", waits_for, 0, null="measured", high=MOST_NODES)
        whole("method.max_lookahead", max_lookahead, 1, high=MOST_NODES)
        if max_lookahead < (waits_for or 0):
            remedy = f"at least method.draft_length ({waits_for}): the target waits for so many"
            raise ConfigError("method.max_lookahead", max_lookahead, remedy)
        one_of("method.stale", stale, *STALE_POLICIES)
        super().__init__(draft_cores)
        self.waits_for, self.max_lookahead, self.stale = waits_for, max_lookahead, stale
        self.stop = make_stop(stop, max_lookahead, worker=True)

    @property
    def max_nodes(self) -> int:
        return self.max_lookahead

    def open(self, setting: Setting) -> None:
        super().open(setting)
        runtime = setting.runtime
        self.mailbox = self.machine.mailbox(runtime.max_new_tokens + self.max_lookahead)
        self.start(setting)
        if self.waits_for is None:
            self.waits_for = self._during_a_forward()
        self.verifier = Verifier(self.mailbox, runtime.law, setting.rule, self.waits_for, self.stale, setting.target)

    def _during_a_forward(self) -> int:
        target, draft = self.beside()
        waits_for = max(1, min(self.max_lookahead, math.ceil(target / draft)))
        self.measured = {"draft_length": waits_for, "target_seconds": target, "draft_seconds": draft}
        return waits_for

    def start(self, setting: Setting) -> None:
        """Start the workers; the target's mailbox is there."""
        self.start_worker(self.make_draft_side(setting))

    def make_draft_side(self, setting: Setting) -> DraftSide:
        """What the draft's process runs; picklable."""
        runtime = setting.runtime
        return DraftSide(self.mailbox, runtime.law, self.max_lookahead, runtime.trace, self.stop, self.waits_for or 0)

    def run(self, parts: Parts, request: Request) -> Outcome:
        done = self.exchanged(request)
        book_draft_report(self.verifier.books, done.report)
        return self.outcome(self.verifier.books, done)

    def exchanged(self, request: Request) -> Exchange:
        self.number += 1
        return self.exchange(self.verifier, Order(self.number, request))
