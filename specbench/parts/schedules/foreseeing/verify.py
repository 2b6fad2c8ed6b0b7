"""The target's side, the authority: meet the draft that answers the last verdict, verify it, say what became of it."""

from __future__ import annotations

from typing import Any

from specbench.engine.sampling import SamplingLaw
from specbench.engine.tree import DraftTree
from specbench.parts.rules.rule import Rule
from specbench.parts.schedules.sides import Deciding
from specbench.processes.mailbox import DONE, OPEN, Mailbox
from specbench.processes.steps import Order, Progress


class Verifier(Deciding):
    """Rounds have numbers, which messages carry as their epoch: a draft for another round is none. draft_length: at most."""

    def __init__(self, mailbox: Mailbox, law: SamplingLaw, rule: Rule, draft_length: int, session: Any):
        super().__init__(mailbox, law, session)
        self.rule, self.draft_length = rule, draft_length

    def prepare(self, order: Order) -> None:
        self.begin(order, self.draft_length + 2, self._meet)
        self.round_number = 0

    def stop(self) -> None:
        self.committed.publish(self.order.number, self.round_number + 1, 0, self.books.output, flag=DONE)

    def _meet(self) -> Progress:
        """IDLE until the draft of this round is there."""
        message = self.inbox.read(0)
        self.seen_version = message.version
        if message.request != self.order.number or message.epoch != self.round_number:
            return Progress.IDLE
        self.tree = DraftTree(message.tokens)
        self._next = self._verify
        return Progress.WORKED

    def _verify(self) -> Progress:
        self.verdict = self.judged(self.tree)
        self._next = self._publish
        return Progress.WORKED

    def _publish(self) -> Progress:
        """First the message, for which the draft may be waiting, then the own books."""
        books, verdict, before = self.books, self.verdict, self.books.position
        kept = books.emit(verdict.tokens)
        self.round_number += 1
        flag = DONE if books.finished else OPEN
        self.committed.publish(self.order.number, self.round_number, before, kept, flag=flag)
        self.session.commit(verdict)
        books.round(self.tree, verdict, epoch=self.epoch)
        books.end_round()
        self.epoch += verdict.num_accepted < len(self.tree.tokens)
        self._next = self._meet
        return Progress.FINISHED if books.finished else Progress.WORKED
