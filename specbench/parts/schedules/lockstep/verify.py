"""The target's side of PEARL, the authority: one forward in every step, then the draft's block, then the verdict.

The window that a verdict is about is shifted by one against the target's forward: the forward runs over the pending token and
the unverified drafts of the last block, while the window reaches from these to the first token of the block that is being
drafted at the same time. So there is no bonus token: what would be its place is where the new block begins.
"""

from __future__ import annotations

from typing import Any

import torch

from specbench.engine.sampling import SamplingLaw
from specbench.engine.tree import Contract, DraftTree, Verdict
from specbench.measure.sensors.clock import clock_for, now
from specbench.parts.rules.rule import RULES, Rule, TorchRng
from specbench.parts.schedules.lockstep.plan import CUT, KEPT, Plan
from specbench.parts.schedules.lockstep.rows import RowBuffer
from specbench.parts.schedules.sides import Deciding
from specbench.processes.mailbox import DONE, Mailbox
from specbench.processes.steps import Progress


class Verifier(Deciding):
    """Forward, meet the draft, conclude.

    rule: greedy_match, sample_match and delta decide by the target's own tokens; lockstep_ratio needs the draft's laws, `rows`.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        law: SamplingLaw,
        rule: Rule,
        session: Any,
        rows: RowBuffer | None = None,
        device: str = "cpu",
    ):
        super().__init__(mailbox, law, session)
        self.rule, self.rows, self.device = rule, rows, device
        self.clock = clock_for(device)

    def prepare(self, plan: Plan) -> None:
        self.begin(plan, 1, self._forward)
        self.plan = plan
        self.unverified: list[int] = []  # accepted on trust: the rest of a block whose first token stood
        self.unverified_laws: list[torch.Tensor] = []
        self.step_number = 0
        self.rng: Any = TorchRng.seeded(self.request.noise_key)
        self.num_drafted = 0  # forwards of the draft since the last round

    def stop(self) -> None:
        self.committed.publish(self.plan.number, self.step_number + 1, 0, self.books.output, flag=DONE)

    def _forward(self) -> Progress:
        """Verify what is there while the draft drafts on."""
        tokens, unverified = [*self.books.output, *self.unverified], len(self.unverified)
        self.block: list[int] = []
        self.block_laws: list[torch.Tensor] = []
        room = self.plan.block_length(tokens, unverified)
        self._next = self._meet if room else self._conclude
        self.rests = self.plan.target_rests(unverified, room)
        if self.rests:
            return Progress.WORKED
        start = now()
        tree = DraftTree(self.unverified)
        self.evidence = self.rule.ask(self.session, tree, self.law, self.books.position, self.request.noise_key)
        if self.rows is None:
            self.verdict = self._judge(self.rule, tree)
        else:
            self.clock.synchronize()  # the wait that follows must not hide the device's work
        self.books.add("verify", now() - start)
        return Progress.WORKED

    def _judge(self, rule: Rule, tree: DraftTree) -> Verdict:
        return rule.judge(tree, self.evidence, self.law, self.books.position, self.request.noise_key, self.rng)

    def _meet(self) -> Progress:
        """The barrier: take in the block of this step; IDLE until it is there."""
        message = self.inbox.read(len(self.books.output) + len(self.unverified))
        self.seen_version = message.version
        if message.request != self.plan.number or message.epoch != self.step_number:
            return Progress.IDLE
        self.block = message.tokens
        if self.rows is not None:
            self.block_laws = self.rows.read(len(self.block), self.device)
        self._next = self._conclude
        return Progress.WORKED

    def _conclude(self) -> Progress:
        """The verdict on the window: unverified drafts and the new block's first token. First the message, then the books."""
        self.step_number += 1
        self.num_drafted += len(self.block)
        if self.rests:
            self.unverified, self.unverified_laws = self.block, self.block_laws
            self.committed.publish(self.plan.number, self.step_number, len(self.books.output), [], flag=KEPT)
            self._next = self._forward
            return Progress.WORKED
        books, start, before, unverified = self.books, now(), self.books.position, len(self.unverified)
        window, drafted = unverified + len(self.block[:1]), unverified + len(self.block)
        accepted, tokens = self._decide()
        stands = accepted == window
        kept = books.emit(tuple(tokens))
        shown = DraftTree([*self.unverified, *self.block[:1]])
        self.unverified, self.unverified_laws = (self.block[1:], self.block_laws[1:]) if stands else ([], [])
        flag = DONE if books.finished else KEPT if self.unverified else CUT
        self.committed.publish(self.plan.number, self.step_number, before, kept, flag=flag)
        self.session.commit(Verdict(tuple(range(min(accepted, unverified))), tuple(tokens)))
        discarded = 0 if stands else drafted - accepted
        books.add("verify", now() - start)
        books.round(
            shown,
            Verdict(tuple(range(accepted)), tuple(tokens)),
            num_discarded=discarded,
            num_target_rows=1 + unverified,
            num_draft_forwards=self.num_drafted,
            rollback_depth=discarded,
            epoch=self.epoch,
            phase="post" if unverified else "pre",
        )
        books.end_round()
        self.epoch += not stands
        self.num_drafted = 0
        self._next = self._forward
        return Progress.FINISHED if books.finished else Progress.WORKED

    def _decide(self) -> tuple[int, list[int]]:
        """How much of the window stands, and the tokens that this commits: one more if something fell or nothing was begun."""
        if self.rows is None:
            # These rules have said already what comes behind the unverified drafts, whatever the new block begins with.
            verdict, unverified = self.verdict, len(self.unverified)
            first_stands = verdict.num_accepted == unverified and self.block[:1] == [verdict.extra]
            return verdict.num_accepted + first_stands, list(verdict.tokens)
        window, laws = [*self.unverified, *self.block[:1]], [*self.unverified_laws, *self.block_laws[:1]]
        rule = self.rule if self.block else RULES["ratio"]  # without a new block there is room for a bonus token
        verdict = self._judge(rule, DraftTree(window, contract=Contract.IID, q=laws))
        return verdict.num_accepted, list(verdict.tokens)
