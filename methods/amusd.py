"""AMUSD: asynchronous multi-device speculative decoding (McDanel, 2410.17375).

Draft and target run at once, each in its own process on its own device. The draft free-runs: one token after the other, never
waiting for a window to fill, at most `max_lookahead` ahead of what is verified. The target verifies whatever is published. When
they disagree the draft rolls back to the agreed prefix and goes on from the target's token.

Where this differs from the published code (whose shared counters drift): messages carry an epoch that counts rollbacks, and a
published draft is used only if its tokens equal the committed ones wherever both exist, so a stale draft can cost a step and
never correctness. Greedy output equals the target's own; at temperature > 0 (the paper has none) the target's tokens are its
keyed samples and the draft uses the same noise, so the output equals autoregressive sampling token for token.

Drafter and Verifier are step functions over a mailbox: the same code runs in two processes and under a seeded scheduler in one.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from specbench.engine.decode import judge
from specbench.engine.mailbox import DONE, Mailbox, PeerLost, Slot, sleep_until_news
from specbench.engine.placement import split
from specbench.engine.runtime import Outcome, Request, Runtime, cut
from specbench.engine.sampling import SamplingLaw
from specbench.engine.session import Session
from specbench.engine.tree import DraftTree, Verdict
from specbench.engine.verify import Rule
from specbench.engine.worker import Worker, WorkerError
from specbench.measure.clock import now
from specbench.measure.events import Round
from specbench.method import Method, Needs
from specbench.schema import ConfigError


class Progress(enum.Enum):
    """What a step did: something, nothing for want of news, or nothing for ever."""

    WORKED, IDLE, FINISHED = range(3)


@dataclass(frozen=True)
class Order:
    """One sample, as both sides know it. `number` tags its messages."""

    number: int
    request: Request


@dataclass
class DraftReport:
    """What the draft's process did during one sample. `discarded_seconds` is part of `draft_seconds`."""

    num_forwards: int = 0
    num_discarded: int = 0
    num_rollbacks: int = 0
    prefill_seconds: float = 0.0
    draft_seconds: float = 0.0
    discarded_seconds: float = 0.0
    idle_seconds: float = 0.0


class Drafter:
    """The draft's side: look for verdicts, draft one token, look again, publish. A `Program` for `engine.worker.Worker`."""

    def __init__(self, mailbox: Mailbox, law: SamplingLaw, max_lookahead: int, timeout_seconds: float = 60.0):
        self.verdicts, self.drafts = mailbox.verdicts, mailbox.drafts
        self.law, self.max_lookahead, self.timeout_seconds = law, max_lookahead, timeout_seconds

    def open(self, model: Any) -> None:
        self.session: Any = Session(model)

    def prepare(self, order: Order) -> None:
        self.order, request = order, order.request
        self.session.start(len(request.prompt_ids) + request.max_new_tokens + self.max_lookahead + 2)
        self.tokens: list[int] = []  # the output as this side sees it: committed tokens, then own drafts
        self.costs: list[float] = []  # seconds that drafting each of them took (0 for adopted ones)
        self.verified = 0  # so many of them are known to be committed
        self.published = 0  # so many of them stand in the drafts slot as they are here
        self.epoch = 0
        self.seen_version = -1
        self.report = DraftReport()
        self.finished = False
        self._next = self._prefill

    def run(self) -> DraftReport:
        while True:
            progress = self.step()
            if progress is Progress.FINISHED:
                return self.report
            if progress is Progress.IDLE:
                self.report.idle_seconds += sleep_until_news(
                    self.verdicts, self.seen_version, lambda: None, 10 * self.timeout_seconds
                )

    def step(self) -> Progress:
        return self._next()

    def _prefill(self) -> Progress:
        start = now()
        self.session.feed(self.order.request.prompt_ids, last_only=True)
        self.report.prefill_seconds = now() - start
        self._next = self._look
        return Progress.WORKED

    def _look(self) -> Progress:
        """Take in verdicts; go on drafting if there is a reason to."""
        self._reconcile()
        if self.finished:
            return Progress.FINISHED
        if not self._may_draft():
            return Progress.IDLE
        self._next = self._draft
        return Progress.WORKED

    def _may_draft(self) -> bool:
        request, length = self.order.request, len(self.tokens)
        if self.verified == 0 or length - self.verified >= self.max_lookahead:
            return False
        # The last token is the target's own, and nothing drafted behind an EOS can be kept.
        return length < request.max_new_tokens - 1 and self.tokens[-1] not in request.eos_ids

    def _draft(self) -> Progress:
        start = now()
        prompt_length, position = len(self.order.request.prompt_ids), len(self.tokens)
        logits = self.session.feed(self.tokens[self.session.length - prompt_length :], last_only=True)
        self.tokens.append(self.law.choose(logits, [position], self.order.request.noise_key)[0])
        cost = now() - start
        self.costs.append(cost)
        self.report.num_forwards += 1
        self.report.draft_seconds += cost
        self._next = self._look_again
        return Progress.WORKED

    def _look_again(self) -> Progress:
        """The verdict may have moved while drafting: a token on a prefix that is gone is dropped, not published."""
        if self.verdicts.version() != self.seen_version:
            self._reconcile()
        if self.finished:
            return Progress.FINISHED
        self._next = self._publish if len(self.tokens) > max(self.published, self.verified) else self._look
        return Progress.WORKED

    def _publish(self) -> Progress:
        self.drafts.publish(
            self.order.number, self.epoch, self.published, self.tokens[self.published :], flag=self.report.num_forwards
        )
        self.published = len(self.tokens)
        self._next = self._look
        return Progress.WORKED

    def _reconcile(self) -> None:
        message = self.verdicts.read(self.verified)
        self.seen_version = message.version
        if message.sample != self.order.number:
            return
        self.epoch = message.epoch
        for index, token in enumerate(message.tokens, start=self.verified):
            if index < len(self.tokens) and self.tokens[index] == token:
                continue
            self._discard_from(index)
            adopted = message.tokens[index - message.start :]
            self.tokens += adopted
            self.costs += [0.0] * len(adopted)
            break
        self.verified = message.length
        if message.flag == DONE:
            self._discard_from(self.verified)
            self.finished = True

    def _discard_from(self, index: int) -> None:
        """Drop own drafts from `index` on and cut the cache back to the agreed prefix."""
        if index < len(self.tokens):
            self.report.num_rollbacks += 1
            self.report.num_discarded += len(self.tokens) - index
            self.report.discarded_seconds += sum(self.costs[index:])
            del self.tokens[index:], self.costs[index:]
        self.published = min(self.published, index)
        keep = len(self.order.request.prompt_ids) + index
        self.session.rollback(min(self.session.length, keep))


class Verifier:
    """The target's side, authoritative: look for drafts, verify what is there, commit, publish the verdict.

    draft_length: drafts it waits for before it verifies (0: it never waits). stale: "plain" answers a draft that turns out
    stale with one plain step while the draft rolls back; "wait" waits for the new one.
    """

    def __init__(self, mailbox: Mailbox, law: SamplingLaw, rule: Rule, draft_length: int, stale: str, session: Any):
        self.verdicts, self.drafts = mailbox.verdicts, mailbox.drafts
        self.law, self.rule, self.draft_length, self.stale_policy = law, rule, draft_length, stale
        self.session = session

    def prepare(self, order: Order) -> None:
        self.order, request = order, order.request
        self.session.start(len(request.prompt_ids) + request.max_new_tokens + 2)
        self.output: list[int] = []
        self.finish: str | None = None
        self.epoch = 0  # rollbacks so far
        self.agreed = 0  # the drafts slot is known to hold the committed tokens up to here
        self.num_forwards = self.forwards_seen = 0  # the draft's forwards, as its last message said
        self.seen_version = -1
        self.rounds: list[Round] = []
        self.tree = DraftTree([])
        self.stale = False
        self.waited = 0.0
        self._next = self._prefill

    def step(self) -> Progress:
        return self._next()

    def _prefill(self) -> Progress:
        request = self.order.request
        first = self.law.choose(self.session.prefill(request.prompt_ids), [0], request.noise_key)[0]
        self.session.pending = first
        self.output, self.finish = cut([first], request.max_new_tokens, request.eos_ids)
        self.verdicts.publish(self.order.number, 0, 0, self.output, flag=DONE if self.finish else 0)
        self.decode_start = self.round_start = now()
        self._next = self._look
        return Progress.FINISHED if self.finish else Progress.WORKED

    def _look(self) -> Progress:
        """Decide what the next forward verifies; IDLE when it is worth waiting for drafts."""
        usable, acknowledged = self._usable_drafts()
        room = self.order.request.max_new_tokens - len(self.output) - 1
        complete = bool(usable) and usable[-1] in self.order.request.eos_ids
        plain = self.stale and self.stale_policy == "plain" and not acknowledged
        if not (len(usable) >= min(self.draft_length, room) or complete or plain):
            return Progress.IDLE
        self.tree = DraftTree(usable[:room])
        self._next = self._verify
        return Progress.WORKED

    def _usable_drafts(self) -> tuple[list[int], bool]:
        """Published drafts behind the committed tokens, if they were made on these; and whether the last rollback is done."""
        message = self.drafts.read(self.agreed)
        self.seen_version = message.version
        if message.sample != self.order.number:
            return [], self.epoch == 0
        self.num_forwards = message.flag
        if message.epoch != self.epoch:
            return [], False
        known = len(self.output) - message.start
        overlap = message.tokens[:known]
        if overlap != self.output[message.start : message.start + len(overlap)]:
            # Made while the last verdict was under way, on a prefix that this verdict left.
            self.stale = True
            self._roll_back()
            self.verdicts.publish(self.order.number, self.epoch, len(self.output), [])
            return [], False
        self.agreed = message.start + len(overlap)
        return message.tokens[known:], True

    def _roll_back(self) -> None:
        self.epoch += 1
        self.agreed = len(self.output)

    def _verify(self) -> Progress:
        request = self.order.request
        self.verify_start = now()
        logits = self.session.forward(self.tree)
        self.verdict: Verdict = judge(self.rule, self.tree, logits, self.law, len(self.output), request.noise_key, None)
        self.verify_end = now()
        self.session.commit(self.verdict)
        self._next = self._publish
        return Progress.WORKED

    def _publish(self) -> Progress:
        request, verdict, before = self.order.request, self.verdict, len(self.output)
        kept, self.finish = cut(list(verdict.tokens), request.max_new_tokens - before, request.eos_ids)
        self.output += kept
        discarded, diverged = self._count_discarded(before)
        epoch = self.epoch
        if diverged:
            self._roll_back()
        self.verdicts.publish(self.order.number, self.epoch, before, kept, flag=DONE if self.finish else 0)
        end = now()
        self.rounds.append(
            Round(
                t_start=self.round_start - self.decode_start,
                t_end=end - self.decode_start,
                num_drafted=len(self.tree.tokens),
                num_accepted=verdict.num_accepted,
                num_emitted=len(kept),
                num_discarded=discarded,
                num_target_rows=1 + len(self.tree.tokens),
                num_draft_forwards=self.num_forwards - self.forwards_seen,
                draft_depth=len(self.tree.tokens),
                rollback_depth=discarded if diverged else 0,
                stale=self.stale,
                epoch=epoch,
                verify_seconds=self.verify_end - self.verify_start,
                wait_seconds=self.waited,
            )
        )
        self.forwards_seen, self.round_start, self.waited, self.stale = self.num_forwards, end, 0.0, False
        self._next = self._look
        return Progress.FINISHED if self.finish else Progress.WORKED

    def _count_discarded(self, before: int) -> tuple[int, bool]:
        """Published drafts, verified or not, that this verdict makes worthless; and whether they contradict it.

        Drafts behind the end of a finished sample are worthless too, but nothing is rolled back for them.
        """
        message = self.drafts.read(before)
        if message.sample != self.order.number or message.epoch != self.epoch or message.start < before:
            return 0, False
        for index, token in enumerate(message.tokens):
            position = before + index
            if position < len(self.output) and token != self.output[position]:
                return len(message.tokens) - index, True
            if self.finish and position >= len(self.output):
                return len(message.tokens) - index, False
        return 0, False


class Amusd(Method):
    """draft_length: drafts the target waits for (published: 2; 0: never waits). max_lookahead: drafts ahead of the verified.

    stale: plain | wait (see Verifier). draft_cores: CPU cores of the draft's process when both models run on the CPU.
    rule: greedy_match | sample_match; null = by temperature.
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
        if not isinstance(draft_length, int) or draft_length < 0:
            raise ConfigError("method.draft_length", draft_length, "0 (never wait) or the number of drafts to wait for")
        if not isinstance(max_lookahead, int) or max_lookahead < max(1, draft_length):
            remedy = f"at least 1 and method.draft_length ({draft_length}): the target waits for so many"
            raise ConfigError("method.max_lookahead", max_lookahead, remedy)
        if stale not in ("plain", "wait"):
            raise ConfigError("method.stale", stale, "possible: plain, wait")
        if not isinstance(draft_cores, int) or draft_cores < 1:
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
        program = Drafter(self.mailbox, runtime.law, self.max_lookahead, runtime.timeout_seconds)
        self.worker = Worker("draft", pair.draft, program, draft_placement, pair.vocab_size, runtime.timeout_seconds)
        self.mailbox.unlink()
        rule = self.rule_for(runtime.law)
        self.verifier = Verifier(self.mailbox, runtime.law, rule, self.draft_length, self.stale, self.target)
        self.number = 0

    def decode(self, request: Request) -> Outcome:
        assert self.worker is not None, "open first"
        worker, verifier = self.worker, self.verifier
        self.number += 1
        order = Order(self.number, request)
        verifier.prepare(order)
        worker.prepare(order)
        start = now()
        worker.go()
        self._drive(verifier, worker, verifier.drafts)
        end = now()
        report: DraftReport = worker.result()
        return Outcome(
            output_ids=verifier.output,
            finish_reason=str(verifier.finish),
            prefill_seconds=verifier.decode_start - start,
            decode_seconds=end - verifier.decode_start,
            rounds=verifier.rounds,
            concurrent_seconds={
                "draft": report.draft_seconds,
                "discarded_draft": report.discarded_seconds,
                "idle": report.idle_seconds,
            },
        )

    def _drive(self, verifier: Verifier, worker: Worker, drafts: Slot) -> None:
        while True:
            progress = verifier.step()
            if progress is Progress.FINISHED:
                return
            if progress is Progress.IDLE:
                try:
                    verifier.waited += sleep_until_news(
                        drafts, verifier.seen_version, worker.check, self.runtime.timeout_seconds
                    )
                except PeerLost as error:
                    worker.close()
                    raise WorkerError(f"worker draft hangs and was killed: {error}") from error

    def memory_bytes(self) -> dict[str, int]:
        mailbox = {"mailbox": self.mailbox.nbytes} if self.worker is not None else {}
        return super().memory_bytes() | mailbox

    def close(self) -> None:
        if self.worker is not None:
            self.worker.close()
            self.worker = None
