"""The draft's side of PEARL: one block in every step, and then the verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from specbench.engine.sampling import SamplingLaw
from specbench.measure.sensors.clock import now
from specbench.parts.contracts import Stop
from specbench.parts.drafts.choice import OWN_STREAM
from specbench.parts.rules.rule import TorchRng
from specbench.parts.schedules.lockstep.plan import KEPT, Plan
from specbench.parts.schedules.lockstep.rows import RowBuffer
from specbench.parts.schedules.sides import Drafting, SideReport
from specbench.processes.mailbox import DONE, Mailbox
from specbench.processes.steps import Progress


@dataclass
class DraftReport(SideReport):
    """idle_seconds: without the wait for the target's prefill."""

    num_discarded: int = 0


class DraftSide(Drafting):
    """Look for the verdict, draft a block, publish it: nobody speaks in between, so that it may be one program (`at_once`).

    choice: "keyed" (the target's own noise) or "greedy". rows: where the laws of drawn tokens go; tokens are then drawn from
    these laws with a stream of the draft's own, whatever `choice` says. stop: may end a block early, behind its first token.
    """

    report: DraftReport
    tokens_at_once = 4  # by a block's length, which is not known yet, a token's seconds change little

    def __init__(
        self,
        mailbox: Mailbox,
        law: SamplingLaw,
        choice: str,
        rows: RowBuffer | None = None,
        trace: bool = False,
        stop: Stop | None = None,
    ):
        super().__init__(mailbox, law, trace, stop)
        self.rows = rows
        self.token_law = SamplingLaw() if choice == "greedy" else law

    def ready(self, order: Plan) -> None:
        self.plan = order
        self.begin(order, 1, self._look)
        self.report = DraftReport()
        self.costs: list[float] = []  # seconds that drafting each token took (0 for the target's own)
        self.laws: list[torch.Tensor] = []  # of the block that is being drafted
        self.committed = 0
        self.step_number = 0
        self.rng: Any = TorchRng.seeded(self.request.noise_key ^ OWN_STREAM)

    def waited(self, seconds: float) -> None:
        if self.committed:  # the target's prefill is not decoding
            super().waited(seconds)

    def _look(self) -> Progress:
        """Take in the verdict of the last step; IDLE until it is there, or while there is nothing to draft."""
        message = self.inbox.read(self.committed)
        self.seen_version = message.version
        if message.request != self.plan.number or message.epoch < self.step_number:
            return Progress.IDLE
        # Steps in which the draft has no part may have passed meanwhile.
        self.step_number = message.epoch
        self._take(message.tokens, kept=message.flag == KEPT)
        if message.flag == DONE:
            return Progress.FINISHED
        self.room = self.plan.block_length(self.tokens, len(self.tokens) - self.committed)
        self.room = min(self.room, max(1, self.stop_policy.budget(self.room)))
        self.block_start = len(self.tokens)
        if self.room == 0:
            self.step_number += 1
            return Progress.IDLE
        self._next = self._draft
        return Progress.WORKED

    def _draft(self) -> Progress:
        """The block, where it can be drafted at once; else its next token."""
        start, goes_on = now(), True
        unfed = self.tokens[self.session.length - len(self.request.prompt_ids) :]
        left = self.room - (len(self.tokens) - self.block_start)
        news = self.at_once(unfed, left, len(self.tokens), self.token_law) if self.rows is None else None
        if news is None:
            logits = self.session.feed(unfed, last_only=True)
            news = [self._choose(logits)]
            goes_on = self.stop_policy.goes_on(logits, news[0])
        self.tokens += news
        end = now()
        each = (end - start) / len(news)
        self.costs += [each] * len(news)
        self.report.num_forwards += len(news)
        self.report.draft_seconds += end - start
        if self.trace:
            self.report.spans += [(start + n * each, start + (n + 1) * each, "draft") for n in range(len(news))]
        complete = len(self.tokens) - self.block_start == self.room or self.tokens[-1] in self.request.eos_ids
        self._next = self._draft if goes_on and not complete else self._publish
        return Progress.WORKED

    def _choose(self, logits: torch.Tensor) -> int:
        if self.rows is None:
            return self.token_law.choose(logits, [len(self.tokens)], self.request.noise_key)[0]
        law = self.law.probabilities(logits)[0]
        self.laws.append(law)
        return self.rng.categorical(law)

    def _publish(self) -> Progress:
        if self.rows is not None:
            self.rows.write(self.laws)
            self.laws = []
        self.drafts.publish(self.plan.number, self.step_number, self.published, self.tokens[self.published :])
        self.published = len(self.tokens)
        self.step_number += 1
        self._next = self._look
        return Progress.WORKED

    def _take(self, news: list[int], kept: bool) -> None:
        """Adopt newly committed tokens; unless drafts behind them are kept, go back to them, cache included."""
        length, agreed = self.committed + len(news), self.committed
        for ours, theirs in zip(self.tokens[agreed:], news, strict=False):
            if ours != theirs:
                break
            agreed += 1
        if self.committed and len(self.tokens) > self.committed:
            # A block accepted on trust counts by what of it is known; the rest when that is.
            judged = length - self.committed if kept else len(self.tokens) - self.committed
            self.stop_policy.learn(judged, agreed - self.committed)
        if not kept:
            self._discard_from(agreed)
            adopted = news[agreed - self.committed :]
            self.tokens += adopted
            self.costs += [0.0] * len(adopted)
            # The last committed token is fed with the next block.
            keep = len(self.request.prompt_ids) + max(0, min(agreed, length - 1))
            self.session.rollback(min(self.session.length, keep))
        assert not kept or agreed == length < len(self.tokens), "drafts are kept only where all before them were accepted"
        self.committed = length

    def _discard_from(self, index: int) -> None:
        if index < len(self.tokens):
            self.report.num_discarded += len(self.tokens) - index
            wasted = sum(self.costs[index:])
            self.report.draft_seconds -= wasted
            self.report.discarded_seconds += wasted
            if self.trace:
                self._mark_discarded(len(self.tokens) - index)
            del self.tokens[index:], self.costs[index:]
        self.published = min(self.published, index)

    def _mark_discarded(self, count: int) -> None:
        spans = self.report.spans
        for place in range(len(spans) - 1, -1, -1):
            if count and spans[place][2] == "draft":
                spans[place] = (*spans[place][:2], "discarded_draft")
                count -= 1
