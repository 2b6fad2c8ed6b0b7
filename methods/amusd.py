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

import contextlib

from specbench.engine.async_draft import Drafter, DraftReport
from specbench.engine.async_verify import STALE_POLICIES, Verifier, with_draft_report
from specbench.engine.mailbox import Mailbox, PeerLost
from specbench.engine.placement import split
from specbench.engine.runtime import Outcome, Request, Runtime
from specbench.engine.steps import Order, drive
from specbench.engine.worker import Worker, WorkerError
from specbench.measure.clock import now
from specbench.method import Method, Needs
from specbench.schema import ConfigError


class Amusd(Method):
    """draft_length: drafts the target waits for (published: 2; 0: never waits). max_lookahead: drafts ahead of the verified.

    stale: plain | wait (see Verifier). draft_cores: CPU cores of the draft's process when both models run on the CPU.
    rule: greedy_match | sample_match; null = by temperature. Raises ConfigError for values out of range.
    """

    needs = Needs(draft="worker")

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
        self.worker: Worker | None = None

    @property
    def max_nodes(self) -> int:
        return self.max_lookahead

    def open(self, runtime: Runtime) -> None:
        super().open(runtime)
        pair = runtime.pair
        if pair.draft is None:
            raise ConfigError("pair.draft", None, "amusd needs a draft model")
        self.placement, draft_placement = split(pair.target.device, pair.draft.device, self.draft_cores)
        self.mailbox = Mailbox.shared(runtime.max_new_tokens + self.max_lookahead)
        program = self.make_drafter(runtime)
        try:
            self.worker = Worker("draft", pair.draft, program, draft_placement, pair.draft_vocab_size, runtime.timeout_seconds)
        finally:
            self.mailbox.unlink()
        rule = self.rule_for(runtime.law)
        self.verifier = Verifier(self.mailbox, runtime.law, rule, self.draft_length, self.stale, self.target)
        self.number = 0

    def make_drafter(self, runtime: Runtime) -> Drafter:
        """What the draft's process runs; picklable."""
        return Drafter(self.mailbox, runtime.law, self.max_lookahead, runtime.trace)

    def decode(self, request: Request) -> Outcome:
        """Continue one prompt. Raises WorkerError when the draft's process is lost; after any other error the next may come."""
        assert self.worker is not None, "open first"
        worker, verifier = self.worker, self.verifier
        self.number += 1
        order = Order(self.number, request)
        verifier.prepare(order)
        worker.prepare(order)
        start = now()
        try:
            worker.go()
            drive(verifier, worker.check, self.runtime.timeout_seconds)
            end = now()
        except WorkerError:
            raise
        except PeerLost as error:
            worker.lost(str(error))
        except BaseException:
            with contextlib.suppress(PeerLost):
                verifier.stop()
            raise
        report: DraftReport = worker.result()
        zero = verifier.decode_start
        # Seconds of the rounds' clock; what the draft did before or after the decoding belongs to no round.
        spans = [(max(0.0, a - zero), min(b, end) - zero, name) for a, b, name in sorted(report.spans) if zero < b and a < end]
        return Outcome(
            output_ids=verifier.output,
            finish_reason=str(verifier.finish),
            prefill_seconds=zero - start,
            decode_seconds=end - zero,
            rounds=with_draft_report(verifier.rounds, report),
            concurrent_seconds={
                "draft": report.draft_seconds,
                "discarded_draft": report.discarded_seconds,
                "idle": report.idle_seconds,
            },
            started_at=zero,
            spans=spans,
        )

    def memory_bytes(self) -> dict[str, int]:
        mailbox = {"mailbox": self.mailbox.nbytes} if self.worker is not None else {}
        return super().memory_bytes() | mailbox

    def close(self) -> None:
        if self.worker is not None:
            self.worker.close()
            self.worker = None


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
