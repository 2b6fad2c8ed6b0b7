"""A stage in the middle of a chain of drafts: it verifies what the stage below drafts, and drafts for the one above.

Towards the stage above it is a free-running draft (`draft.DraftSide`): what it says may be contradicted, and then it goes back.
Towards the stage below it is what the target is to its draft, but for one thing: it may take back what it said. So the stage
below compares all of its words anew every time, and this one all of the drafts below: which of its words the stage below had
heard when it drafted, no number says. A contradiction travels down at once, before the next look at the drafts below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from specbench.engine.request import cut
from specbench.engine.sampling import SamplingLaw
from specbench.engine.tree import DraftTree, Evidence, Verdict
from specbench.measure.sensors.clock import now
from specbench.parts.rules.rule import Rule
from specbench.parts.schedules.free_running.draft import DraftReport, DraftSide
from specbench.processes.mailbox import DONE, OPEN, Either, Mailbox, Message
from specbench.processes.steps import Order, Progress


@dataclass
class RelayReport(DraftReport):
    """num_verified: drafts of the stage below that were verified here; num_accepted: those that are this stage's own words."""

    num_verified: int = 0
    num_accepted: int = 0


class Relay(DraftSide):
    """Look up, tell the stage below, look at its drafts, verify them, look up again, publish.

    above, below: the mailboxes shared with both neighbours. rule: says which drafts of the stage below are this model's own
    words. waits_for, stale: towards the stage below, as the target's (`verify.Verifier`).
    """

    report: RelayReport

    def __init__(
        self,
        above: Mailbox,
        below: Mailbox,
        law: SamplingLaw,
        rule: Rule,
        max_lookahead: int,
        waits_for: int,
        stale: str = "plain",
        trace: bool = False,
        in_chain: bool = False,
    ):
        super().__init__(above, law, max_lookahead, trace, None, waits_for, in_chain)
        self.above, self.told_slot, self.below = above.committed, below.committed, below.drafts
        self.inbox: Any = Either(self.above, self.below)
        self.rule, self.waits_for, self.stale_policy = rule, waits_for, stale

    def ready(self, order: Order) -> None:
        super().ready(order)
        self.report = RelayReport()
        self.told = 0  # so many tokens stand in the slot of the stage below as they are here
        self.told_epoch = 0  # what was drafted below and contradicted, and what was taken back, so far
        self.contradicted = -1  # position of the last one
        self.stale = False
        self.seen_above = self.seen_below = -1
        self.tree = DraftTree([])

    def run(self) -> Any:
        try:
            return super().run()
        except Exception:  # the sample fails, and the stage below has only this one to hear it from
            if self.calibration is None:
                self.told_slot.publish(self.order.number, self.told_epoch, self.told, self.tokens[self.told :], flag=DONE)
            raise

    # Towards the stage above.

    def _look(self) -> Progress:
        self._take_news()
        self._next = self._tell if self._has_to_tell() else self._look_below
        return Progress.WORKED

    def _look_again(self) -> Progress:
        self._take_news()
        publishes = not self.finished and len(self.tokens) > max(self.published, self.verified)
        self._next = self._publish if publishes else self._tell if self._has_to_tell() else self._look
        return Progress.WORKED

    def _publish(self) -> Progress:
        super()._publish()
        self._next = self._tell if self._has_to_tell() else self._look
        return Progress.WORKED

    def _take_news(self) -> None:
        if self.above.version() == self.seen_above:
            return
        message = self.above.read(0 if self.in_chain else self.verified)
        self.seen_above = message.version
        if message.request == self.order.number:
            self._take(message)

    def _discard_from(self, index: int) -> None:
        if index < len(self.tokens):
            self._contradict(index)
        self.told = min(self.told, index)
        super()._discard_from(index)

    # Towards the stage below.

    def _has_to_tell(self) -> bool:
        return self.finished or self.told < len(self.tokens)

    def _tell(self) -> Progress:
        flag = DONE if self.finished else OPEN
        self.told_slot.publish(self.order.number, self.told_epoch, self.told, self.tokens[self.told :], flag=flag)
        self.told = len(self.tokens)
        self._next = self._look
        return Progress.FINISHED if self.finished else Progress.WORKED

    def _contradict(self, index: int) -> None:
        self.told_epoch += 1
        self.contradicted = index

    def _look_below(self) -> Progress:
        """Decide what the next forward verifies; IDLE when it is worth waiting, for drafts or for a verdict from above."""
        message = self.below.read(0)
        self.seen_below = message.version
        self.seen_version = self.seen_above + self.seen_below
        self._next = self._look
        usable = self._usable(message)
        if not self._may_draft():
            return Progress.IDLE
        # The output's last token is the target's own; the last of a verdict here is this stage's.
        self.room = min(
            self.request.max_new_tokens - 1 - len(self.tokens), self.max_lookahead + self.verified - len(self.tokens)
        )
        complete = bool(usable) and usable[-1] in self.request.eos_ids
        plain = self.stale and self.stale_policy == "plain" and not usable
        if not (len(usable) >= min(self.waits_for, self.room - 1) or complete or plain):
            return Progress.IDLE
        self.tree = DraftTree(usable[: self.room - 1])
        self._next = self._draft
        return Progress.WORKED

    def _usable(self, message: Message) -> list[int]:
        """Drafts behind this stage's own words, none if they were made on other ones."""
        if message.request != self.order.number:
            return []
        known = min(len(self.tokens), message.length)
        if self.tokens[:known] != message.tokens[:known]:
            index = next(n for n in range(known) if self.tokens[n] != message.tokens[n])
            if index > self.contradicted:
                # News: made while the last verdict was under way. Otherwise the stage below has yet to answer.
                self.stale = True
                self._contradict(index)
            return []
        return message.tokens[len(self.tokens) :]

    def _draft(self) -> Progress:
        """One forward over the pending tokens and the drafts from below; what it says instead of these, and behind them."""
        start = now()
        before, prompt_length = len(self.tokens), len(self.request.prompt_ids)
        drafts = self.tree.tokens
        logits = self.session.feed([*self.tokens[self.session.length - prompt_length :], *drafts])[-1 - len(drafts) :]
        key = self.request.noise_key
        verdict: Verdict = self.rule.judge(self.tree, Evidence(logits, {}), self.law, before, key, None)
        kept = cut(list(verdict.tokens), self.room, self.request.eos_ids)[0]
        self.tokens += kept
        self.session.rollback(min(self.session.length, prompt_length + len(self.tokens) - 1))
        end, each = now(), (now() - start) / len(kept)
        self.forwards += [(end - (len(kept) - n) * each, end - (len(kept) - 1 - n) * each) for n in range(len(kept))]
        if verdict.num_accepted < len(drafts):
            self._contradict(before + verdict.num_accepted)
        self.stale = False
        self.report.num_forwards += 1
        self.report.num_verified += len(drafts)
        self.report.num_accepted += min(verdict.num_accepted, len(kept))
        self._next = self._look_again
        return Progress.WORKED
