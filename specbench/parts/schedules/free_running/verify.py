"""The target's side of free-running speculative decoding, the authority: verify whatever is published, commit, say so.

What stands in the drafts slot is the whole output as the draft sees it. It is used only as far as it agrees with the committed
tokens wherever both exist, so a draft that lags behind can cost a step and never correctness, and no counter can drift: the
tokens themselves say whether the draft has heard of the last rollback.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from specbench.engine.request import cut
from specbench.engine.sampling import SamplingLaw
from specbench.engine.tree import DraftTree, Verdict
from specbench.measure.records.events import Round
from specbench.measure.sensors.clock import now
from specbench.parts.rules.rule import Rule
from specbench.parts.schedules.free_running.draft import DraftReport
from specbench.parts.schedules.sequential import judge
from specbench.processes.mailbox import DONE, OPEN, Mailbox
from specbench.processes.steps import Order, Progress

STALE_POLICIES = ("plain", "wait")


class Verifier:
    """Look for drafts, verify what is there, publish the verdict. A `Side`; one for all samples of a run.

    draft_length: drafts it waits for before it verifies (0: it never waits). stale, when a draft turns out to stand on an
    abandoned prefix: "plain" takes one plain step while the draft rolls back; "wait" waits for the new one.
    """

    def __init__(self, mailbox: Mailbox, law: SamplingLaw, rule: Rule, draft_length: int, stale: str, session: Any):
        self.verdicts, self.inbox = mailbox.verdicts, mailbox.drafts
        self.law, self.rule, self.draft_length, self.stale_policy = law, rule, draft_length, stale
        self.session = session

    def prepare(self, order: Order) -> None:
        self.order, request = order, order.request
        self.session.start(len(request.prompt_ids) + request.max_new_tokens + 2)
        self.output: list[int] = []
        self.finish: str | None = None
        self.agreed = 0  # the drafts slot holds the committed tokens up to here, and the draft will not take that back
        self.epoch = 0  # contradictions between published drafts and committed tokens so far
        self.contradicted = -1  # output position of the last one
        self.num_forwards = self.forwards_seen = 0  # the draft's forwards, as its last message said
        self.seen_version = -1
        self.rounds: list[Round] = []
        self.tree = DraftTree([])
        self.stale = False
        self.waited_seconds = 0.0
        self._next = self._prefill

    def step(self) -> Progress:
        return self._next()

    def waited(self, seconds: float) -> None:
        self.waited_seconds += seconds

    def stop(self) -> None:
        """End the sample here, whatever happened, so that the draft stops too and is ready for the next."""
        self.verdicts.publish(self.order.number, self.epoch, 0, self.output, flag=DONE)

    def _prefill(self) -> Progress:
        request = self.order.request
        first = self.law.choose(self.session.prefill(request.prompt_ids), [0], request.noise_key)[0]
        self.session.pending = first
        self.output, self.finish = cut([first], request.max_new_tokens, request.eos_ids)
        self.verdicts.publish(self.order.number, 0, 0, self.output, flag=DONE if self.finish else OPEN)
        self.decode_start = self.round_start = now()
        self._next = self._look
        return Progress.FINISHED if self.finish else Progress.WORKED

    def _look(self) -> Progress:
        """Decide what the next forward verifies; IDLE when it is worth waiting for drafts."""
        usable = self._usable_drafts()
        room = self.order.request.max_new_tokens - len(self.output) - 1
        complete = bool(usable) and usable[-1] in self.order.request.eos_ids  # the draft stops behind an EOS
        plain = self.stale and self.stale_policy == "plain" and not usable
        if not (len(usable) >= min(self.draft_length, room) or complete or plain):
            return Progress.IDLE
        self.tree = DraftTree(usable[:room])
        self._next = self._verify
        return Progress.WORKED

    def _usable_drafts(self) -> list[int]:
        """Published drafts behind the committed tokens, none if they were made on other ones."""
        message = self.inbox.read(self.agreed)
        self.seen_version = message.version
        if message.sample != self.order.number:
            return []
        self.num_forwards = message.flag
        known = len(self.output) - message.start
        for index, token in enumerate(message.tokens[:known], start=message.start):
            if token != self.output[index]:
                self.agreed = index
                if index > self.contradicted:
                    # News: made while the last verdict was under way. Otherwise the draft has yet to answer.
                    self.stale = True
                    self._contradiction(index)
                return []
        self.agreed = min(len(self.output), message.length)
        return message.tokens[known:]

    def _contradiction(self, index: int) -> None:
        self.epoch += 1
        self.contradicted = index

    def _verify(self) -> Progress:
        request = self.order.request
        self.verify_start = now()
        logits = self.session.forward(self.tree)
        self.verdict: Verdict = judge(self.rule, self.tree, logits, self.law, len(self.output), request.noise_key, None)
        self.verify_end = now()
        self._next = self._publish
        return Progress.WORKED

    def _publish(self) -> Progress:
        """First the message, for which the draft may be waiting, then the own books."""
        request, verdict, before, epoch = self.order.request, self.verdict, len(self.output), self.epoch
        kept, self.finish = cut(list(verdict.tokens), request.max_new_tokens - before, request.eos_ids)
        if verdict.num_accepted < len(self.tree.tokens):
            self._contradiction(before + verdict.num_accepted)
        self.output += kept
        self.verdicts.publish(self.order.number, self.epoch, before, kept, flag=DONE if self.finish else OPEN)
        self.session.commit(verdict)
        end = now()
        self.rounds.append(
            Round(
                t_start=self.round_start - self.decode_start,
                t_end=end - self.decode_start,
                num_drafted=len(self.tree.tokens),
                num_accepted=verdict.num_accepted,
                num_emitted=len(kept),
                num_target_rows=1 + len(self.tree.tokens),
                num_draft_forwards=self.num_forwards - self.forwards_seen,
                draft_depth=len(self.tree.tokens),
                stale=self.stale,
                epoch=epoch,
                verify_seconds=self.verify_end - self.verify_start,
                wait_seconds=self.waited_seconds,
            )
        )
        self.forwards_seen, self.round_start, self.waited_seconds, self.stale = self.num_forwards, end, 0.0, False
        self._next = self._look
        return Progress.FINISHED if self.finish else Progress.WORKED


def with_draft_report(rounds: Sequence[Round], report: DraftReport) -> list[Round]:
    """The rounds of a finished sample with what only the draft knows: what it threw away, and because of which round.

    A cut belongs to the round that committed the position at which draft and target differ; it counts all tokens dropped there,
    published or not. Forwards that no message mentioned belong to the last round: the sum over rounds is the draft's own count.
    (Nothing is drafted behind the end of a sample: the draft stops at the length limit and at an EOS, and where the target's
    EOS comes as a surprise it contradicts the draft.)
    """
    cut_at = dict(report.discards)
    completed: list[Round] = []
    start = 1  # the prefill's token comes first
    for r in rounds:
        discarded = sum(cut_at.pop(position, 0) for position in range(start, start + r.num_emitted))
        completed.append(replace(r, num_discarded=discarded, rollback_depth=discarded))
        start += r.num_emitted
    assert not cut_at, f"drafts were dropped at {sorted(cut_at)}, where no round committed anything"
    if completed:
        unseen = report.num_forwards - sum(r.num_draft_forwards for r in rounds)
        completed[-1] = replace(completed[-1], num_draft_forwards=completed[-1].num_draft_forwards + unseen)
    return completed
