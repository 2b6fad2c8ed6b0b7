"""The free-running schedule: both sides, started and reported on."""

from __future__ import annotations

from specbench.engine.request import Outcome, Request
from specbench.parts.contracts import Parts, Setting, Stop
from specbench.parts.schedules.free_running.draft import DraftSide
from specbench.parts.schedules.free_running.verify import Verifier, book_draft_report
from specbench.parts.schedules.two_sides import Exchange, TwoSides
from specbench.processes.steps import Order


class FreeRunning(TwoSides):
    """waits_for: drafts that the target waits for before it verifies. stale: see `Verifier`. stop: see `DraftSide`."""

    name, form = "free-running", "chain"

    def __init__(self, waits_for: int, max_lookahead: int, stale: str, draft_cores: int, stop: Stop):
        super().__init__(draft_cores)
        self.waits_for, self.max_lookahead, self.stale, self.stop = waits_for, max_lookahead, stale, stop

    @property
    def max_nodes(self) -> int:
        return self.max_lookahead

    def open(self, setting: Setting) -> None:
        super().open(setting)
        runtime = setting.runtime
        self.mailbox = self.machine.mailbox(runtime.max_new_tokens + self.max_lookahead)
        self.start(setting)
        self.verifier = Verifier(self.mailbox, runtime.law, setting.rule, self.waits_for, self.stale, setting.target)

    def start(self, setting: Setting) -> None:
        """Start the workers; the target's mailbox is there."""
        self.start_worker(self.make_draft_side(setting))

    def make_draft_side(self, setting: Setting) -> DraftSide:
        """What the draft's process runs; picklable."""
        runtime = setting.runtime
        return DraftSide(self.mailbox, runtime.law, self.max_lookahead, runtime.trace, self.stop, self.waits_for)

    def run(self, parts: Parts, request: Request) -> Outcome:
        done = self.exchanged(request)
        book_draft_report(self.verifier.books, done.report)
        return self.outcome(self.verifier.books, done)

    def exchanged(self, request: Request) -> Exchange:
        self.number += 1
        return self.exchange(self.verifier, Order(self.number, request))
