"""PEARL: parallel speculative decoding with adaptive draft length (Liu et al. 2408.11850, ICLR 2025).

Draft and target run in lockstep, each in its own process on its own device. In every step the draft makes a block of
`draft_length` tokens while the target runs one forward. *Pre-verify*: that forward tests the first token of the block that is
being drafted; if it stands, the whole block is accepted on trust. *Post-verify*: the forward tests the rest of the last block,
while the next one is drafted behind it. A run of accepted blocks is a draft of adaptive length; there is no bonus token.

Messages are integers, as in the authors' later engine (nano-PEARL), not packed probabilities: the block's ids in one direction,
the committed ids and the fate of the drafts in the other. With the rules that match against the target's own tokens the output
equals autoregressive decoding token for token, at any temperature (keyed noise). `rule=lockstep_ratio` is the paper's own rule,
exact in law; the draft's distributions then travel too. Beyond the published code: EOS and length limit are honoured by both
sides, and no unverified token is ever emitted.

`draft`: one block a step. `verify`: the target's side. Both are step functions over a mailbox (`engine.steps`), so that a
test can run them in one process.
"""

from __future__ import annotations

import sys

from specbench.config.options import ConfigError
from specbench.engine.request import Outcome, Request
from specbench.engine.runtime import Runtime
from specbench.engine.sampling import SamplingLaw
from specbench.parts.rules.rule import Rule
from specbench.parts.schedules.lockstep.calibration import MAX_LENGTH, Calibration, balanced_length, forward_seconds
from specbench.parts.schedules.lockstep.draft import Drafter, DraftReport
from specbench.parts.schedules.lockstep.plan import Plan
from specbench.parts.schedules.lockstep.rows import RowBuffer
from specbench.parts.schedules.lockstep.verify import Verifier
from specbench.parts.schedules.two_sides import TwoProcessMethod
from specbench.processes.mailbox import Mailbox
from specbench.processes.worker import Worker

CALIBRATION_CONTEXT, CALIBRATION_SECONDS = 128, 0.3


class Pearl(TwoProcessMethod):
    """draft_length: tokens of a block, or "auto": the measured ratio of the two models' forwards, rounded.

    rule: greedy_match | sample_match | delta | lockstep_ratio; null = match, by temperature. draft: how it chooses tokens at a
    temperature above 0, keyed (with the target's noise) | greedy; under lockstep_ratio it draws from its own law. pre_verify,
    post_verify: false for the paper's ablations. draft_cores: CPU cores of the draft's process when both models run on the CPU.
    Raises ConfigError for values out of range.
    """

    def __init__(
        self,
        *,
        draft_length: int | str = "auto",
        rule: str | None = None,
        draft: str = "keyed",
        pre_verify: bool = True,
        post_verify: bool = True,
        draft_cores: int = 1,
    ):
        if draft_length != "auto" and (not _is_integer(draft_length) or int(draft_length) < 1):
            raise ConfigError("method.draft_length", draft_length, "auto, or the tokens of a block: a whole number from 1 up")
        if rule not in (None, "greedy_match", "sample_match", "delta", "lockstep_ratio"):
            raise ConfigError("method.rule", rule, "possible in lockstep: greedy_match, sample_match, delta, lockstep_ratio")
        if draft not in ("keyed", "greedy"):
            raise ConfigError("method.draft", draft, "possible: keyed, greedy")
        if rule == "lockstep_ratio" and draft == "greedy":
            raise ConfigError("method.draft", draft, "is not exact under method.rule=lockstep_ratio: leave it at keyed")
        for name, value in (("pre_verify", pre_verify), ("post_verify", post_verify)):
            if not isinstance(value, bool):
                raise ConfigError(f"method.{name}", value, "possible: true, false")
        if not _is_integer(draft_cores) or draft_cores < 1:
            raise ConfigError("method.draft_cores", draft_cores, "give a whole number from 1 up")
        super().__init__(draft_length=None if draft_length == "auto" else int(draft_length), rule=rule)
        self.draft, self.pre_verify, self.post_verify, self.draft_cores = draft, pre_verify, post_verify, draft_cores
        self.rows: RowBuffer | None = None

    def open(self, runtime: Runtime) -> None:
        super().open(runtime)
        self.mailbox = Mailbox.shared(runtime.max_new_tokens + 1)
        rule = self.rule_for(runtime.law)
        if rule.name == "lockstep_ratio":
            self.rows = RowBuffer(self.draft_length or MAX_LENGTH, runtime.target.vocab_size)
        self.start_worker(runtime, self.make_drafter(runtime.law, runtime.trace), self.draft_cores)
        self.verifier = self.make_verifier(runtime.law, rule)
        if self.draft_length is None:
            assert self.worker is not None
            self.draft_length = self._balance(self.worker)

    def make_drafter(self, law: SamplingLaw, trace: bool) -> Drafter:
        """What the draft's process runs; picklable."""
        return Drafter(self.mailbox, law, self.draft, self.rows, trace)

    def make_verifier(self, law: SamplingLaw, rule: Rule) -> Verifier:
        """What this process runs."""
        return Verifier(self.mailbox, law, rule, self.target, self.rows, self.runtime.device)

    def _balance(self, worker: Worker) -> int:
        """Measure both models beside each other, on the cores that they will have."""
        longest = min(self.target.model.context_length or CALIBRATION_CONTEXT, CALIBRATION_CONTEXT + MAX_LENGTH) - MAX_LENGTH
        order = Calibration(max(1, longest), CALIBRATION_SECONDS)
        assert self.placement is not None
        with self.placement.applied():
            worker.prepare(order)
            worker.go()
            busy = forward_seconds(self.target, order, num_rows=1)
            draft_seconds: float = worker.result()
            length = balanced_length(draft_seconds, lambda rows: busy if rows == 1 else self._target_seconds(order, rows))
        self.calibration = {"draft_length": length, "target_seconds": busy, "draft_seconds": draft_seconds}
        print(
            f"specbench: pearl measured {1e3 * busy:.3g} ms a target forward, {1e3 * draft_seconds:.3g} ms a draft forward: "
            f"draft_length={length}",
            file=sys.stderr,
        )
        return length

    def _target_seconds(self, order: Calibration, num_rows: int) -> float:
        return forward_seconds(self.target, Calibration(order.context_length, order.seconds / 3), num_rows)

    def decode(self, request: Request) -> Outcome:
        assert self.draft_length is not None, "open first"
        self.number += 1
        plan = Plan(self.number, request, self.draft_length, self.pre_verify, self.post_verify)
        done = self.converse(self.verifier, plan)
        report: DraftReport = done.report
        concurrent_seconds = {
            "draft": report.draft_seconds - report.discarded_seconds,
            "discarded_draft": report.discarded_seconds,
            "idle": report.idle_seconds,
        }
        return self.outcome(self.verifier, done, self.verifier.rounds, concurrent_seconds)

    def facts(self) -> dict[str, float | int | str]:
        return dict(getattr(self, "calibration", {}))

    def memory_bytes(self) -> dict[str, int]:
        return super().memory_bytes() | ({} if self.rows is None else {"draft_rows": self.rows.nbytes})


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
