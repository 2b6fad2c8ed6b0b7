"""AMUSD: asynchronous multi-device speculative decoding (McDanel, 2410.17375).

Draft and target run at once, each in its own process on its own device. The draft free-runs: one token after the other, never
waiting for a window to fill, at most `max_lookahead` ahead of what is verified. The target verifies whatever is published. When
they disagree the draft rolls back to the agreed prefix and goes on from the target's token.

Where this differs from the published code (whose two shared counters drift apart): the tokens themselves say whether a draft
stands on the committed prefix, and an epoch counts contradictions, so a stale draft can cost a step and never correctness. The
draft has a bounded look-ahead and stops at EOS and length limit. Greedy output equals the target's own; at temperature > 0 (the
paper has none) the target's tokens are its keyed samples and the draft uses the same noise, so the output equals autoregressive
sampling token for token.

The two sides are `engine.async_draft.Drafter` and `engine.async_verify.Verifier`: step functions, the same in two processes and
under a test's scheduler in one.
"""

from __future__ import annotations

from specbench.config.options import ConfigError
from specbench.engine.request import Outcome, Request
from specbench.engine.runtime import Runtime
from specbench.parts.schedules.free_running.draft import Drafter, DraftReport
from specbench.parts.schedules.free_running.verify import STALE_POLICIES, Verifier, with_draft_report
from specbench.parts.schedules.two_sides import TwoProcessMethod
from specbench.processes.mailbox import Mailbox
from specbench.processes.steps import Order


class Amusd(TwoProcessMethod):
    """draft_length: drafts the target waits for (published: 2; 0: never waits). max_lookahead: drafts ahead of the verified.

    stale: plain | wait (see Verifier). draft_cores: CPU cores of the draft's process when both models run on the CPU.
    rule: greedy_match | sample_match; null = by temperature. Raises ConfigError for values out of range.
    """

    def __init__(
        self,
        *,
        draft_length: int = 2,
        max_lookahead: int = 16,
        stale: str = "plain",
        draft_cores: int = 1,
        rule: str | None = None,
    ):
        if not _is_integer(draft_length) or draft_length < 0:
            raise ConfigError("method.draft_length", draft_length, "0 (never wait) or the number of drafts to wait for")
        if not _is_integer(max_lookahead) or max_lookahead < max(1, draft_length):
            remedy = f"at least 1 and method.draft_length ({draft_length}): the target waits for so many"
            raise ConfigError("method.max_lookahead", max_lookahead, remedy)
        if stale not in STALE_POLICIES:
            raise ConfigError("method.stale", stale, f"possible: {', '.join(STALE_POLICIES)}")
        if not _is_integer(draft_cores) or draft_cores < 1:
            raise ConfigError("method.draft_cores", draft_cores, "give a whole number from 1 up")
        if rule not in (None, "greedy_match", "sample_match"):
            raise ConfigError("method.rule", rule, "possible for a free-running draft: greedy_match, sample_match")
        super().__init__(draft_length=draft_length, rule=rule)
        self.draft_length: int = draft_length
        self.max_lookahead, self.stale, self.draft_cores = max_lookahead, stale, draft_cores

    @property
    def max_nodes(self) -> int:
        return self.max_lookahead

    def open(self, runtime: Runtime) -> None:
        super().open(runtime)
        self.mailbox = Mailbox.shared(runtime.max_new_tokens + self.max_lookahead)
        self.start_worker(runtime, self.make_drafter(runtime), self.draft_cores)
        rule = self.rule_for(runtime.law)
        self.verifier = Verifier(self.mailbox, runtime.law, rule, self.draft_length, self.stale, self.target)

    def make_drafter(self, runtime: Runtime) -> Drafter:
        """What the draft's process runs; picklable."""
        return Drafter(self.mailbox, runtime.law, self.max_lookahead, runtime.trace)

    def decode(self, request: Request) -> Outcome:
        self.number += 1
        done = self.converse(self.verifier, Order(self.number, request))
        report: DraftReport = done.report
        concurrent_seconds = {
            "draft": report.draft_seconds,
            "discarded_draft": report.discarded_seconds,
            "idle": report.idle_seconds,
        }
        return self.outcome(self.verifier, done, with_draft_report(self.verifier.rounds, report), concurrent_seconds)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
