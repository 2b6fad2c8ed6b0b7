"""The foreseeing schedule: both sides, how many branches are prepared, started and reported on."""

from __future__ import annotations

import sys

from specbench.config.options import one_of, whole
from specbench.engine.request import Outcome, Request
from specbench.engine.tree import MOST_NODES
from specbench.parts.contracts import Parts, Setting
from specbench.parts.schedules.calibration import largest_fitting
from specbench.parts.schedules.foreseeing.draft import DraftSide, book_draft_report
from specbench.parts.schedules.foreseeing.plan import FALLBACKS, HIT, MISS, DraftReport, Plan
from specbench.parts.schedules.foreseeing.verify import Verifier
from specbench.parts.schedules.two_sides import TwoSides

BUDGETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # of an automatic one
SECONDS = 0.06  # for each of them


class Foreseeing(TwoSides):
    """budget: branches prepared at a time; None: as many as can grow to their full length during a forward of the target.

    draft_length, fallback, decay: as `DraftSide`'s. Raises ConfigError for values out of range.
    """

    name, form = "foreseeing", "branches"

    def __init__(self, draft_length: int, budget: int | None, fallback: str, decay: float, draft_cores: int):
        whole("method.draft_length", draft_length, 1, high=MOST_NODES)
        one_of("method.fallback", fallback, *FALLBACKS)
        super().__init__(draft_cores)
        self.draft_length, self.budget, self.fallback, self.decay = draft_length, budget, fallback, decay

    @property
    def max_nodes(self) -> int:
        return self.draft_length

    @property
    def mailbox_room(self) -> int:
        """Tokens that a message may hold beside the output."""
        return self.draft_length

    def open(self, setting: Setting) -> None:
        super().open(setting)
        runtime = setting.runtime
        self.mailbox = self.machine.mailbox(runtime.max_new_tokens + self.mailbox_room)
        self.start_worker(self.make_draft_side(setting))
        self.verifier = self.make_verifier(setting)
        if self.budget is None:
            self.budget = self._fitting()

    def make_draft_side(self, setting: Setting) -> DraftSide:
        """What the draft's process runs; picklable."""
        runtime = setting.runtime
        return DraftSide(self.mailbox, runtime.law, self.draft_length, self.fallback, self.decay, runtime.trace)

    def make_verifier(self, setting: Setting) -> Verifier:
        """What this process runs."""
        return Verifier(self.mailbox, setting.runtime.law, setting.rule, self.draft_length, setting.target)

    def _fitting(self) -> int:
        """By forwards measured beside each other: one over the draft itself, and then one for each token of the branches."""
        target, one = self.beside(SECONDS, target_rows=1 + self.draft_length)
        seconds = {1: one}

        def preparing(budget: int) -> float:
            if budget not in seconds:
                seconds[budget] = self.beside(SECONDS, 1 + self.draft_length, budget)[1]
            return one + self.draft_length * seconds[budget]

        budget = largest_fitting(BUDGETS, preparing, target)
        self.measured = {"budget": budget, "target_seconds": target, "draft_seconds": one}
        print(
            f"specbench: ssd measured {1e3 * target:.3g} ms a target forward, {1e3 * preparing(budget):.3g} ms to prepare "
            f"{budget} branches: budget={budget}",
            file=sys.stderr,
        )
        return budget

    def run(self, parts: Parts, request: Request) -> Outcome:
        assert self.budget is not None, "open first"
        self.number += 1
        done = self.exchange(self.verifier, Plan(self.number, request, self.budget))
        book_draft_report(self.verifier.books, done.report)
        self.report: DraftReport = done.report
        return self.outcome(self.verifier.books, done)

    def counted(self) -> dict[str, float]:
        phases = [one.phase for one in self.report.rounds]
        return {"hits": phases.count(HIT), "misses": phases.count(MISS), "unused_tokens": self.report.num_unused}
