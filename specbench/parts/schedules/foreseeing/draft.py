"""The draft's side: answer each verdict, at once if it was foreseen, and prepare for the next while the target verifies.

Its sequence is the prompt, the committed tokens and the draft that is being verified; below that the branches grow, all of
them by one token in every forward. A verdict keeps the rows of the branch that was prepared for it, which becomes the new
draft, and forgets the others. Where no branch fits, the draft is made then and there, or looked up in the text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from specbench.engine.sampling import SamplingLaw
from specbench.engine.target import open_branching
from specbench.measure.sensors.clock import now
from specbench.parts.drafts.lookup import Ngrams
from specbench.parts.schedules.books import Books
from specbench.parts.schedules.foreseeing.fan_out import Acceptance, candidates, fan_out, length_chances
from specbench.parts.schedules.foreseeing.plan import HIT, LAST, MISS, Branch, DraftReport, Forward, Plan, RoundReport
from specbench.parts.schedules.sides import Drafting
from specbench.processes.mailbox import DONE, Mailbox, Message
from specbench.processes.steps import Progress

MAX_NGRAM = 2  # of the lookup: prompt_lookup's


class DraftSide(Drafting):
    """Take in a verdict, publish the draft that answers it, prepare for the next; one forward between two looks, or the whole
    chain that answers a verdict without a branch, for which the target waits.

    draft_length: of a draft, at most. fallback: "draft" or "lookup", for a verdict without a branch. decay: see `fan_out`.
    Raises ValueError for a draft model that takes chains only (`open`).
    """

    report: DraftReport
    tokens_at_once = 0  # what is prepared grows by rows of a tree

    def __init__(self, mailbox: Mailbox, law: SamplingLaw, draft_length: int, fallback: str, decay: float, trace: bool = False):
        super().__init__(mailbox, law, trace, None)
        self.draft_length, self.fallback, self.decay = draft_length, fallback, decay

    def open(self, model: Any) -> None:
        self.session = open_branching(model)

    def ready(self, order: Plan) -> None:
        self.budget = order.budget
        self.begin(order, (1 + self.draft_length) * (1 + self.budget), self._first)
        self.report = DraftReport()
        self.chain: list[int] = []  # the draft behind the committed tokens
        self.made_in: list[Forward] = []  # the forwards that its tokens came from
        self.logits: list[Tensor] = []  # behind the last committed token, and behind each of the chain, as far as they are fed
        self.branches: dict[tuple[int, int], Branch] = {}  # by accepted length and the target's own token
        self.prepared = False  # the branches are those of this chain
        self.verdict = 0  # number of the next one; 0 is the prefill's token
        self.phase = HIT
        self.acceptance = Acceptance()
        self.forwards: list[Forward] = []
        self.text: Ngrams | None = None

    def run(self) -> Any:
        result = super().run()
        if self.calibration is None:
            self._close_books()
        return result

    # ------------------------------------------------------------------------------------------------ steps
    def _first(self) -> Progress:
        """The prompt is fed: prepare for the prefill's token."""
        self.session.branch()
        self.logits = [self.prompt_logits]
        self._plan()
        self._next = self._look
        return Progress.WORKED

    def _look(self) -> Progress:
        """Take in a verdict; else go on preparing, if there is anything left to prepare."""
        if self.inbox.version() != self.seen_version:
            message = self.inbox.read(len(self.tokens))
            self.seen_version = message.version
            done = message.flag == DONE
            if message.request == self.order.number and (message.epoch >= self.verdict or done):
                self._take(message)
                return Progress.FINISHED if done else Progress.WORKED
            if message.request == self.order.number:
                self._hear(message)
        if self.prepared and all(branch.complete for branch in self.branches.values()):
            return Progress.IDLE
        self._next = self._grow if self.prepared else self._catch_up
        return Progress.WORKED

    def _hear(self, message: Message) -> None:
        """News that is no verdict: there is none, unless the target says what to prepare for (`mirrored`)."""

    def _grow(self) -> Progress:
        """Every branch by one token, in one forward."""
        growing = [branch for branch in self.branches.values() if not branch.complete]
        ids = [branch.tokens[-1] if branch.tokens else branch.bonus for branch in growing]
        first, start = len(self.session.row_parents), now()
        logits = self.session.grow(ids, [branch.rows[-1] if branch.rows else branch.above for branch in growing])
        at = [branch.position + 1 + len(branch.tokens) for branch in growing]
        tokens = self.law.choose(logits, at, self.request.noise_key)
        forward = self._count(start, len(growing))
        for number, (branch, token) in enumerate(zip(growing, tokens, strict=True)):
            branch.rows.append(first + number)
            branch.logits.append(logits[number : number + 1])
            branch.tokens.append(token)
            branch.forwards.append(forward)
            branch.complete = len(branch.tokens) == branch.limit or token in self.request.eos_ids
        self._next = self._look
        return Progress.WORKED

    def _catch_up(self) -> Progress:
        """Feed what of the chain is not fed yet; then it is known what the target may say of it."""
        start, fed = now(), len(self.logits)
        self._feed()
        forward = self._count(start, len(self.chain) + 1 - fed)
        forward.kept = forward.made  # what the sequence itself costs is no waste
        self._plan()
        self._next = self._look
        return Progress.WORKED

    def _draft(self) -> Progress:
        """The chain, where it can be drafted at once, else a token of it: nothing was prepared, and the target waits."""
        start, limit = now(), self._limit(len(self.tokens) - 1)
        if not self.chain and (found := self._drafted_at_once(limit)) is not None:
            self.chain = found
            self.made_in = [self._count(start, len(found), len(found))] * len(found)
            self._next = self._publish
            return Progress.WORKED
        self._feed()
        position = len(self.tokens) + len(self.chain)
        token = self.law.choose(self.logits[-1], [position], self.request.noise_key)[0]
        self.chain.append(token)
        self.made_in.append(self._count(start, 1))
        if len(self.chain) == limit or token in self.request.eos_ids:
            self._next = self._publish
        return Progress.WORKED

    def _drafted_at_once(self, limit: int) -> list[int] | None:
        """What is behind each of its tokens is not told: `_catch_up` feeds them again, in one forward beside the target's."""
        known = len(self.request.prompt_ids) + len(self.tokens)
        found = self.at_once(self.tokens[self.session.length - known :], limit, len(self.tokens), self.law)
        if found is not None:
            self.session.rollback(known - 1)
        return found

    def _publish(self) -> Progress:
        self.drafts.publish(self.order.number, self.verdict - 1, 0, self.chain)
        counted = sum(one.num_forwards for one in self.report.rounds)
        self.report.rounds.append(RoundReport(self.phase, self.report.num_forwards - counted))
        self._next = self._look
        return Progress.WORKED

    # ------------------------------------------------------------------------------------------------ what they do
    def _limit(self, position: int) -> int:
        """Tokens that a draft may have behind the target's token at `position`: the output's last one is the target's too."""
        return min(self.draft_length, self.request.max_new_tokens - position - 2)

    def _feed(self) -> None:
        """The sequence's own rows that are missing; the branches are not there yet, or forgotten."""
        known = len(self.request.prompt_ids) + len(self.tokens)
        behind = self.session.length - known
        unfed = self.chain[behind:] if behind >= 0 else [*self.tokens[behind:], *self.chain]
        logits = self.session.feed(unfed)
        missing = len(self.chain) + 1 - len(self.logits)
        self.logits += list(logits[-missing:].split(1))
        self.session.branch(known - 1)

    def _plan(self) -> None:
        """Which verdicts to prepare for: the draft's own best candidates behind each length, but the token it drafted there."""
        request, length, position = self.request, len(self.chain), len(self.tokens)
        ends = bool(self.chain) and self.chain[-1] in request.eos_ids  # accepted whole, the output is complete
        places = range(length + 1 - ends)
        self.prepared, self.branches = True, {}
        counts = fan_out(self.budget, length_chances(self.acceptance.rate, length)[: len(places)], self.decay)
        scores = self.law.scores(
            torch.cat([self.logits[place] for place in places]), [position + place for place in places], request.noise_key
        )
        likely = candidates(scores, self.chain, max(counts, default=0), request.eos_ids)
        for place in places:
            limit = self._limit(position + place)
            for bonus in likely[place][: counts[place]] if limit > 0 else ():
                above = place if self.tokens else -1
                self.branches[place, bonus] = Branch(above, bonus, position + place, limit)

    def _take(self, message: Message) -> None:
        """What stands of the chain, and the branch for what came behind it, or none."""
        news, chain = message.tokens, self.chain
        accepted = next((i for i, (ours, theirs) in enumerate(zip(chain, news, strict=False)) if ours != theirs), None)
        accepted = min(len(chain), len(news)) if accepted is None else accepted
        for forward in self.made_in[:accepted]:
            forward.kept += 1
        done = message.flag == DONE
        assert done or (len(news) == accepted + 1 and message.epoch == self.verdict), "one verdict at a time"
        branch = None if done else self._chosen(accepted, news[accepted])
        self.report.num_unused += sum(len(other.tokens) for other in self.branches.values() if other is not branch)
        if not done and chain:
            self.acceptance.learn(len(chain), accepted)
        rows = len(self.logits) if self.tokens else 0  # of the sequence, behind the trunk
        stands = len(self.request.prompt_ids) + len(self.tokens) + accepted  # the target's own token is not fed yet
        self.verdict += 1
        self.tokens += news
        self.branches, self.prepared = {}, False
        if branch is None:
            self.session.rollback(min(self.session.trunk + rows, stands))
            self.chain, self.made_in, self.logits = [], [], []
            if not done:
                self._next = self._fall_back()
            return
        self.session.keep([*range(accepted + 1 if rows else 0), *branch.rows])
        self.session.branch(stands)
        self.chain, self.made_in, self.logits = branch.tokens, branch.forwards, branch.logits
        self.phase, self._next = HIT, self._publish

    def _chosen(self, accepted: int, bonus: int) -> Branch | None:
        """The branch for this verdict, if anything has been drafted on it."""
        branch = self.branches.get((accepted, bonus))
        return branch if branch is not None and branch.tokens else None

    def _fall_back(self) -> Callable[[], Progress]:
        """The step that answers a verdict without a branch."""
        limit = self._limit(len(self.tokens) - 1)
        self.phase = MISS if limit > 0 else LAST
        if limit <= 0:
            return self._publish
        if self.fallback == "draft":
            return self._draft
        if self.text is None:
            self.text = Ngrams(MAX_NGRAM, self.request.prompt_ids)
        self.text.extend(self.tokens[len(self.text.tokens) - len(self.request.prompt_ids) :])
        self.chain = self.text.following(limit, self.request.eos_ids)
        self.made_in = [Forward(0.0, 0.0, 1) for _ in self.chain]
        return self._publish

    # ------------------------------------------------------------------------------------------------ books
    def _count(self, start: float, made: int, num_forwards: int = 1) -> Forward:
        forward = Forward(start, now(), made)
        self.forwards.append(forward)
        self.report.num_forwards += num_forwards
        return forward

    def _close_books(self) -> None:
        """A forward's time belongs to its tokens, in equal parts; the sequence's own rows count as kept."""
        report = self.report
        for forward in self.forwards:
            seconds = forward.end - forward.start
            report.draft_seconds += seconds * forward.kept / forward.made
            report.discarded_seconds += seconds * (1 - forward.kept / forward.made)
            if self.trace:
                report.spans.append((forward.start, forward.end, "draft" if forward.kept else "discarded_draft"))


def book_draft_report(books: Books, report: DraftReport) -> None:
    """Write into a finished sample's rounds what only the draft knows. Forwards behind the last draft are the last round's."""
    left = report.num_forwards
    for number, one in enumerate(report.rounds):
        forwards = one.num_forwards if number + 1 < len(report.rounds) else left
        books.amend(number, phase=one.phase, num_draft_forwards=forwards)
        left -= forwards
