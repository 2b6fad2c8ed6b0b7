"""The draft's side of free-running speculative decoding: draft one token after the other, never waiting for a window to fill.

It runs at most `max_lookahead` tokens ahead of what it knows to be committed. When a verdict contradicts it, it goes back to
the agreed prefix, cache included, and on from the target's own token.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from specbench.engine.sampling import SamplingLaw
from specbench.measure.sensors.clock import now
from specbench.parts.contracts import Stop
from specbench.parts.schedules.sides import Drafting, SideReport
from specbench.processes.mailbox import DONE, Mailbox, Message
from specbench.processes.steps import Order, Progress


@dataclass
class DraftReport(SideReport):
    """discards: (position, number of tokens) of every cut: the output position whose committed token contradicted the draft.

    A cut takes along what the side above has taken back, which is not counted.
    """

    discards: list[tuple[int, int]] = field(default_factory=list)

    @property
    def num_discarded(self) -> int:
        return sum(count for _, count in self.discards)


class DraftSide(Drafting):
    """Look for verdicts, draft one token, look again, publish.

    stop: may hold the draft back until the next verdict, but never below the `waited_for` drafts that the target waits for.
    in_chain: the verdicts are another draft's, which may take them back; the target never does.
    """

    report: DraftReport

    def __init__(
        self,
        mailbox: Mailbox,
        law: SamplingLaw,
        max_lookahead: int,
        trace: bool = False,
        stop: Stop | None = None,
        waited_for: int = 0,
        in_chain: bool = False,
    ):
        super().__init__(mailbox, law, trace, stop)
        self.max_lookahead, self.waited_for, self.in_chain = max_lookahead, waited_for, in_chain

    def ready(self, order: Order) -> None:
        self.begin(order, self.max_lookahead + 2, self._look)
        self.report = DraftReport()
        self.forwards: list[tuple[float, float] | None] = []  # when each token was drafted; None: it came from the target
        self.verified = 0  # so many tokens are known to be committed
        self.epoch = 0  # of the last verdict seen
        self.finished = False
        self.paused = False  # the stop wants a verdict before another token

    def _look(self) -> Progress:
        """Take in verdicts; go on drafting if there is a reason to."""
        self._take_news()
        if self.finished:
            return Progress.FINISHED
        if not self._may_draft():
            return Progress.IDLE
        self._next = self._draft
        return Progress.WORKED

    def _may_draft(self) -> bool:
        request, length = self.request, len(self.tokens)
        ahead = length - self.verified
        if self.verified == 0 or ahead >= self.max_lookahead:
            return False
        if ahead >= max(1, self.waited_for) and (self.paused or ahead >= self.stop_policy.budget(self.max_lookahead)):
            return False
        # The last token is the target's own, and nothing drafted behind an EOS can be kept.
        return length < request.max_new_tokens - 1 and self.tokens[-1] not in request.eos_ids

    def _draft(self) -> Progress:
        start = now()
        prompt_length, position = len(self.request.prompt_ids), len(self.tokens)
        unfed = self.tokens[self.session.length - prompt_length :]
        news = self.at_once(unfed, 1, position, self.law)
        if news is None:
            logits = self.session.feed(unfed, last_only=True)
            news = self.law.choose(logits, [position], self.request.noise_key)
            self.paused = not self.stop_policy.goes_on(logits, news[0])
        self.tokens += news
        self.forwards.append((start, now()))
        self.report.num_forwards += 1
        self._next = self._look_again
        return Progress.WORKED

    def _look_again(self) -> Progress:
        """The verdict may have moved while drafting: a token on a prefix that is gone is dropped, not published."""
        self._take_news()
        if self.finished:
            return Progress.FINISHED
        self._next = self._publish if len(self.tokens) > max(self.published, self.verified) else self._look
        return Progress.WORKED

    def _publish(self) -> Progress:
        """Cut the slot back to where it still says what is here, and put the rest behind."""
        self.drafts.publish(
            self.order.number, self.epoch, self.published, self.tokens[self.published :], flag=self.report.num_forwards
        )
        self.published = len(self.tokens)
        self._next = self._look
        return Progress.WORKED

    def _take_news(self) -> None:
        if self.inbox.version() == self.seen_version:
            return
        message = self.inbox.read(0 if self.in_chain else self.verified)
        self.seen_version = message.version
        if message.request == self.order.number:
            self._take(message)

    def _take(self, message: Message) -> None:
        self.epoch = message.epoch
        judged = stood = max(0, min(len(self.tokens), message.length) - self.verified)  # of the own drafts
        for index, token in enumerate(message.tokens, start=message.start):
            if index < len(self.tokens) and self.tokens[index] == token:
                continue
            stood = max(0, index - self.verified)
            judged = max(stood, len(self.tokens) - self.verified)
            self._discard_from(index)
            adopted = message.tokens[index - message.start :]
            self.tokens += adopted
            self.forwards += [None] * len(adopted)
            break
        self.stop_policy.learn(judged, stood)
        self.paused = False
        self.verified = message.length
        if message.flag == DONE:
            self._discard_from(self.verified)
            self.report.draft_seconds = self._close_books(0, "draft")
            self.finished = True

    def _discard_from(self, index: int) -> None:
        """Drop own drafts from `index` on and cut the cache back to the agreed prefix."""
        if index < len(self.tokens):
            self.report.discards.append((index, sum(span is not None for span in self.forwards[index:])))
            self.report.discarded_seconds += self._close_books(index, "discarded_draft")
            del self.tokens[index:], self.forwards[index:]
        self.published = min(self.published, index)
        keep = len(self.request.prompt_ids) + index
        self.session.rollback(min(self.session.length, keep))

    def _close_books(self, index: int, name: str) -> float:
        """Seconds of the forwards behind the tokens from `index` on, whose fate is now known."""
        spans = [span for span in self.forwards[index:] if span is not None]
        if self.trace:
            self.report.spans += [(start, end, name) for start, end in spans]
        return sum(end - start for start, end in spans)
