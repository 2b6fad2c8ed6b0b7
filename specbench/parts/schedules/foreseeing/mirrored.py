"""The foreseeing schedule where the target says what to prepare for: its early exit's candidates (Mirror-SD, 2510.13161).

A forward of the target stops behind its first layers. What the LM head says of the hidden states there, at every place of the
draft that is being verified, are the candidates for the target's own token, if the draft is contradicted at that place or ends
there; they go to the draft, which prepares a branch for each while the other layers run. They stand behind the committed tokens
in the target's slot until the verdict takes their place: a draft that is late never sees them.
"""

from __future__ import annotations

from typing import Any

import torch

from specbench.engine.sampling import SamplingLaw
from specbench.engine.tree import DraftTree
from specbench.measure.sensors.clock import now
from specbench.parts.contracts import Needs, Setting
from specbench.parts.rules.rule import Rule
from specbench.parts.schedules.foreseeing.draft import DraftSide
from specbench.parts.schedules.foreseeing.fan_out import candidates
from specbench.parts.schedules.foreseeing.plan import Branch, Plan
from specbench.parts.schedules.foreseeing.schedule import Foreseeing
from specbench.parts.schedules.foreseeing.verify import Verifier
from specbench.processes.mailbox import DONE, Mailbox, Message
from specbench.processes.steps import Order, Progress

CANDIDATES = DONE + 1  # flag of the verdict slot: ids in groups of the same size, a group for each place
NONE = -1  # where a vocabulary has no more


class MirrorVerifier(Verifier):
    """Meet the draft, run the first layers, tell the candidates, run the others, judge.

    exit_layer: layers before the exit. num_candidates: at every place.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        law: SamplingLaw,
        rule: Rule,
        draft_length: int,
        session: Any,
        exit_layer: int,
        num_candidates: int,
    ):
        super().__init__(mailbox, law, rule, draft_length, session)
        self.exit_layer, self.num_candidates = exit_layer, num_candidates

    def prepare(self, order: Order) -> None:
        super().prepare(order)
        self.num_told = self.num_foreseen = 0  # rounds whose candidates were told, and those whose verdict was among them
        self.candidates: list[list[int]] = []

    def _meet(self) -> Progress:
        progress = super()._meet()
        if progress is Progress.WORKED:
            self._next = self._run_first_layers
        return progress

    def _run_first_layers(self) -> Progress:
        start, tokens = now(), self.tree.tokens
        hidden = self.session.run_layers([self.session.pending, *tokens], 0, self.exit_layer)
        self.tree = DraftTree(tokens, start_layer=self.exit_layer, hidden=hidden)
        self._next = self._verify
        if self.books.room > 0:  # else no draft can follow
            self.candidates = self._candidates(self.session.exit_logits(hidden))
            self._next = self._tell
        self.books.add("verify", now() - start)
        return Progress.WORKED

    def _candidates(self, logits: torch.Tensor) -> list[list[int]]:
        """`num_candidates` ids for every place."""
        places = range(self.books.position, self.books.position + len(self.tree.tokens) + 1)
        scores = self.law.scores(logits, places, self.request.noise_key)
        found = candidates(scores, self.tree.tokens, self.num_candidates, self.request.eos_ids)
        return [(able + [NONE] * self.num_candidates)[: self.num_candidates] for able in found]

    def _tell(self) -> Progress:
        told = [token for group in self.candidates for token in group]
        self.committed.publish(self.order.number, self.round_number, self.books.position, told, flag=CANDIDATES)
        self.num_told += 1
        self._next = self._verify
        return Progress.WORKED

    def _publish(self) -> Progress:
        accepted = self.verdict.num_accepted
        if self.candidates:
            self.num_foreseen += self.verdict.extra in self.candidates[accepted]
            self.candidates = []
        return super()._publish()


class MirrorDraftSide(DraftSide):
    """Prepares for the target's candidates and for nothing else. num_candidates: at every place."""

    def __init__(
        self, mailbox: Mailbox, law: SamplingLaw, draft_length: int, fallback: str, num_candidates: int, trace: bool = False
    ):
        super().__init__(mailbox, law, draft_length, fallback, 1.0, trace)
        self.num_candidates = num_candidates

    def ready(self, order: Plan) -> None:
        super().ready(order)
        self.told: list[int] = []  # candidates for the draft that is being verified, once they are here

    def _hear(self, message: Message) -> None:
        if message.flag == CANDIDATES and message.epoch == self.verdict - 1:
            self.told = message.tokens
            if self.prepared:  # what the branches hang on is fed
                self._plan()

    def _plan(self) -> None:
        self.prepared, self.branches = True, {}
        position, places = len(self.tokens), len(self.told) // self.num_candidates
        for place in range(places):
            limit = self._limit(position + place)
            for bonus in self.told[place * self.num_candidates : (place + 1) * self.num_candidates] if limit > 0 else ():
                if bonus != NONE:
                    self.branches[place, bonus] = Branch(place, bonus, position + place, limit)

    def _take(self, message: Message) -> None:
        super()._take(message)
        self.told = []


class Mirrored(Foreseeing):
    """exit_layer: None for half of the target's layers. num_candidates: told at every place. The rest: `Foreseeing`."""

    name = "mirrored"

    def __init__(self, draft_length: int, num_candidates: int, exit_layer: int | None, fallback: str, draft_cores: int):
        self.needs = type(self).needs | Needs(layers=(exit_layer or 1) + 1)  # one is left behind the exit
        super().__init__(draft_length, num_candidates, fallback, 1.0, draft_cores)
        self.budget = (1 + draft_length) * num_candidates
        self.num_candidates, self.exit_layer = num_candidates, exit_layer

    @property
    def mailbox_room(self) -> int:
        return (1 + self.draft_length) * max(1, self.num_candidates)

    def open(self, setting: Setting) -> None:
        total = setting.target.model.num_cache_layers
        self.exit = self.exit_layer or max(1, total // 2)
        assert self.exit < total, "a need"
        super().open(setting)

    def make_draft_side(self, setting: Setting) -> MirrorDraftSide:
        law, trace = setting.runtime.law, setting.runtime.trace
        return MirrorDraftSide(self.mailbox, law, self.draft_length, self.fallback, self.num_candidates, trace)

    def make_verifier(self, setting: Setting) -> MirrorVerifier:
        law, session = setting.runtime.law, setting.target
        return MirrorVerifier(self.mailbox, law, setting.rule, self.draft_length, session, self.exit, self.num_candidates)

    def counted(self) -> dict[str, float]:
        verifier = self.verifier
        assert isinstance(verifier, MirrorVerifier)
        return super().counted() | {"rounds_with_candidates": verifier.num_told, "verdicts_among_them": verifier.num_foreseen}

    def facts(self) -> dict[str, float | int | str]:
        return super().facts() | {"exit_layer": self.exit, "num_processes": 2}
