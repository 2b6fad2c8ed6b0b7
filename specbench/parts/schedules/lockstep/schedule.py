"""The lockstep schedule: both sides, the length of a block, started and reported on."""

from __future__ import annotations

import sys

from specbench.engine.request import Outcome, Request
from specbench.parts.contracts import Parts, Setting, Stop
from specbench.parts.rules.rule import Rule
from specbench.parts.schedules.calibration import MAX_LENGTH, SECONDS, balanced_length
from specbench.parts.schedules.lockstep.draft import DraftSide
from specbench.parts.schedules.lockstep.plan import Plan
from specbench.parts.schedules.lockstep.rows import RowBuffer
from specbench.parts.schedules.lockstep.verify import Verifier
from specbench.parts.schedules.two_sides import TwoSides


class Lockstep(TwoSides):
    """draft_length: tokens of a block; None: the measured ratio of both models' forwards, rounded. choice: as `DraftSide`'s."""

    name, form = "lockstep", "chain"

    def __init__(
        self, draft_length: int | None, choice: str, pre_verify: bool, post_verify: bool, draft_cores: int, stop: Stop
    ):
        super().__init__(draft_cores)
        self.draft_length, self.choice, self.stop = draft_length, choice, stop
        self.pre_verify, self.post_verify = pre_verify, post_verify
        self.rows: RowBuffer | None = None

    @property
    def max_nodes(self) -> int:
        return self.draft_length or 0

    def open(self, setting: Setting) -> None:
        super().open(setting)
        runtime = setting.runtime
        self.mailbox = self.machine.mailbox(runtime.max_new_tokens + 1)
        if setting.rule.name == "lockstep_ratio":
            self.rows = RowBuffer(self.draft_length or MAX_LENGTH, runtime.target.vocab_size)
        self.start_worker(self.make_draft_side(setting))
        self.verifier = self.make_verifier(setting, setting.rule)
        if self.draft_length is None:
            self.draft_length = self._balance()

    def make_draft_side(self, setting: Setting) -> DraftSide:
        """What the draft's process runs; picklable."""
        return DraftSide(self.mailbox, setting.runtime.law, self.choice, self.rows, setting.runtime.trace, self.stop)

    def make_verifier(self, setting: Setting, rule: Rule) -> Verifier:
        """What this process runs."""
        return Verifier(self.mailbox, setting.runtime.law, rule, setting.target, self.rows, setting.runtime.device)

    def _balance(self) -> int:
        """By both models' forwards, measured beside each other."""
        busy, draft_seconds = self.beside()
        length = balanced_length(draft_seconds, lambda rows: busy if rows == 1 else self.alone(SECONDS / 3, rows))
        self.measured = {"draft_length": length, "target_seconds": busy, "draft_seconds": draft_seconds}
        print(
            f"specbench: pearl measured {1e3 * busy:.3g} ms a target forward, {1e3 * draft_seconds:.3g} ms a draft forward: "
            f"draft_length={length}",
            file=sys.stderr,
        )
        return length

    def run(self, parts: Parts, request: Request) -> Outcome:
        assert self.draft_length is not None, "open first"
        self.number += 1
        plan = Plan(self.number, request, self.draft_length, self.pre_verify, self.post_verify)
        done = self.exchange(self.verifier, plan)
        return self.outcome(self.verifier.books, done)

    def memory_bytes(self) -> dict[str, int]:
        return super().memory_bytes() | ({} if self.rows is None else {"draft_rows": self.rows.nbytes})
