"""The target's side of free-running speculative decoding, the authority: verify whatever is published, commit, say so.

What stands in the drafts slot is the whole output as the draft sees it. It is used only as far as it agrees with the committed
tokens wherever both exist, so a draft that lags behind can cost a step and never correctness, and no counter can drift: the
tokens themselves say whether the draft has heard of the last rollback.
"""

from __future__ import annotations

from typing import Any

from specbench.engine.sampling import SamplingLaw
from specbench.engine.tree import DraftTree, Verdict
from specbench.parts.rules.rule import Rule
from specbench.parts.schedules.books import Books
from specbench.parts.schedules.free_running.draft import DraftReport
from specbench.parts.schedules.sides import Deciding
from specbench.processes.mailbox import DONE, OPEN, Mailbox
from specbench.processes.steps import Order, Progress

STALE_POLICIES = ("plain", "wait")


class Verifier(Deciding):
    """Look for drafts, verify what is there, publish the verdict.

    draft_length: drafts it waits for before it verifies (0: it never waits). stale, when a draft turns out to stand on an
    abandoned prefix: "plain" takes one plain step while the draft rolls back; "wait" waits for the new one.
    """

    def __init__(self, mailbox: Mailbox, law: SamplingLaw, rule: Rule, draft_length: int, stale: str, session: Any):
        super().__init__(mailbox, law, session)
        self.rule, self.draft_length, self.stale_policy = rule, draft_length, stale

    def prepare(self, order: Order) -> None:
        self.begin(order, 2, self._look)
        self.agreed = 0  # the drafts slot holds the committed tokens up to here, and the draft will not take that back
        self.contradicted = -1  # output position of the last one
        self.num_forwards = self.forwards_seen = 0  # the draft's forwards, as its last message said
        self.tree = DraftTree([])
        self.stale = False

    def _look(self) -> Progress:
        """Decide what the next forward verifies; IDLE when it is worth waiting for drafts."""
        usable = self._usable_drafts()
        room = self.books.room
        complete = bool(usable) and usable[-1] in self.request.eos_ids  # the draft stops behind an EOS
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
        if message.request != self.order.number:
            return []
        self.num_forwards = message.flag
        known = len(self.books.output) - message.start
        for index, token in enumerate(message.tokens[:known], start=message.start):
            if token != self.books.output[index]:
                self.agreed = index
                if index > self.contradicted:
                    # News: made while the last verdict was under way. Otherwise the draft has yet to answer.
                    self.stale = True
                    self._contradiction(index)
                return []
        self.agreed = min(len(self.books.output), message.length)
        return message.tokens[known:]

    def _contradiction(self, index: int) -> None:
        self.epoch += 1
        self.contradicted = index

    def _verify(self) -> Progress:
        self.verdict: Verdict = self.judged(self.tree)
        self._next = self._publish
        return Progress.WORKED

    def _publish(self) -> Progress:
        """First the message, for which the draft may be waiting, then the own books."""
        books, verdict, before, epoch = self.books, self.verdict, self.books.position, self.epoch
        kept = books.emit(verdict.tokens)
        if verdict.num_accepted < len(self.tree.tokens):
            self._contradiction(before + verdict.num_accepted)
        self.committed.publish(self.order.number, self.epoch, before, kept, flag=DONE if books.finished else OPEN)
        self.session.commit(verdict)
        forwards = self.num_forwards - self.forwards_seen
        # What was thrown away, and so how far the draft went back, only the draft knows: see `book_draft_report`.
        facts = {"num_discarded": 0, "rollback_depth": 0, "num_draft_forwards": forwards, "stale": self.stale, "epoch": epoch}
        books.round(self.tree, verdict, **facts)
        books.end_round()
        self.forwards_seen, self.stale = self.num_forwards, False
        self._next = self._look
        return Progress.FINISHED if books.finished else Progress.WORKED


def book_draft_report(books: Books, report: DraftReport) -> None:
    """Write into the rounds of a finished sample what only the draft knows: what it threw away, and because of which round.

    A cut belongs to the round that committed the position at which draft and target differ; it counts all tokens dropped there,
    published or not. Forwards that no message mentioned belong to the last round: the sum over rounds is the draft's own count.
    (Nothing is drafted behind the end of a sample: the draft stops at the length limit and at an EOS, and where the target's
    EOS comes as a surprise it contradicts the draft.)
    """
    cut_at = dict(report.discards)
    start = 1  # the prefill's token comes first
    for number, emitted in enumerate(books.of_rounds("num_emitted")):
        discarded = sum(cut_at.pop(position, 0) for position in range(start, start + emitted))
        books.amend(number, num_discarded=discarded, rollback_depth=discarded)
        start += emitted
    assert not cut_at, f"drafts were dropped at {sorted(cut_at)}, where no round committed anything"
    forwards = books.of_rounds("num_draft_forwards")
    if forwards:
        books.amend(len(forwards) - 1, num_draft_forwards=forwards[-1] + report.num_forwards - sum(forwards))
