"""Mirror-SD's two sides under SSD's seeded scheduler and checks; candidates of an early exit that is right now and then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from fake_sessions import FakeBranching, FakeSession, Table, agreement, imitation
from interleaving import all_met, caught, counting_mailbox, played
from test_ssd import Case, Play

from specbench.config.options import ConfigError
from specbench.engine.tree import DraftTree, Evidence
from specbench.methods.overlap.mirror_sd import MirrorSd
from specbench.parts.rules.rule import RULES
from specbench.parts.schedules.foreseeing.mirrored import NONE, MirrorDraftSide, MirrorVerifier
from specbench.parts.schedules.foreseeing.plan import HIT, Plan
from specbench.processes.steps import Progress

NUM_SEEDS, ALL_SEEDS = 40, 4000


class Layered(FakeSession):
    """A target that may stop behind its first layers, which speak a language of their own."""

    def __init__(self, table: Table, early: Table):
        super().__init__(table)
        self.early = early

    def run_layers(self, rows: Sequence[int], first: int, last: int) -> torch.Tensor:
        self.entered = list(rows)
        return torch.zeros(len(rows), 1)

    def exit_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.tensor([self.early((*self.fed, *self.entered[: n + 1])) for n in range(len(hidden))])

    def forward(self, tree: DraftTree) -> Evidence:
        assert tree.hidden is not None and self.entered == [self.pending, *tree.tokens], "other rows than ran before"
        return super().forward(tree)


class MirrorPlay(Play):
    """early: how often the exit's favourite is the target's own token."""

    def __init__(
        self, case: Case, drafter: type[MirrorDraftSide] = MirrorDraftSide, verifier: type[MirrorVerifier] = MirrorVerifier
    ):
        super().__init__(case)
        language, law, self.num_candidates = case.language(), case.law(), 1 + case.seed % 3
        self.mailbox = counting_mailbox()
        self.drafter = drafter(self.mailbox, law, case.draft_length, case.fallback, self.num_candidates)
        self.drafter.session = FakeBranching(self.table)
        early = imitation(language, agreement("random", 0.6, case.seed + 5, 0), seed=9)
        rule = RULES["greedy_match" if law.greedy else "sample_match"]
        target = Layered(language.logits, early)
        self.verifier = verifier(self.mailbox, law, rule, case.draft_length, target, 1, self.num_candidates)

    def prepare(self, number: int, request: Any) -> None:
        plan = Plan(number, request, (1 + self.case.draft_length) * self.num_candidates)
        self.verifier.prepare(plan)
        self.drafter.prepare(plan)
        self.drafts: list[list[int]] = []
        self.hits_possible = 0

    def meets(self) -> None:
        super().meets()
        side, verifier = self.drafter, self.verifier
        assert isinstance(verifier, MirrorVerifier)
        assert all(len(group) == self.num_candidates for group in verifier.candidates)
        for place, group in enumerate(verifier.candidates):
            drafted = verifier.tree.tokens[place] if place < len(verifier.tree.tokens) else None
            assert drafted not in group and not set(group) & side.request.eos_ids

    def check(self, request: Any) -> None:
        super().check(request)
        verifier = self.verifier
        assert isinstance(verifier, MirrorVerifier)
        hits = [one.phase for one in self.drafter.report.rounds].count(HIT)
        assert hits <= verifier.num_foreseen <= verifier.num_told, "a hit that the exit did not foresee"
        self.seen["foreseen, and too late"] += hits < verifier.num_foreseen


SITUATIONS = (
    HIT, "miss, draft", "miss, lookup", "hit behind a rejection", "hit behind a hit", "foreseen, and too late", "unused",
    "bonus", "finish eos", "finish length", "sampled", "spurious wake-up", "time-out without news",
)  # fmt: skip


@pytest.mark.parametrize("num_seeds", [NUM_SEEDS, pytest.param(ALL_SEEDS, marks=pytest.mark.slow)])
def test_every_interleaving_gives_the_targets_own_output(num_seeds: int) -> None:
    seen = played(
        lambda seed: MirrorPlay(Case.drawn(seed)), num_seeds, samples=(1, 2)
    )  # and the next sample on the same mailboxes
    all_met(seen, SITUATIONS, least=num_seeds // 20)


class KeepsOldCandidates(MirrorDraftSide):
    """Prepares for what the exit said of the draft before."""

    def _take(self, message: Any) -> None:
        told = self.told
        super()._take(message)
        self.told = told


class HangsBranchesOneOff(MirrorDraftSide):
    """Takes a place for the next one."""

    def _plan(self) -> None:
        super()._plan()
        for branch in self.branches.values():
            branch.above = max(0, branch.above - 1)


class RunsOtherRows(MirrorVerifier):
    """Lets other rows into the upper layers than went through the lower ones."""

    def _verify(self) -> Progress:
        if self.tree.tokens:
            self.tree = DraftTree(self.tree.tokens[:-1], start_layer=1, hidden=self.tree.hidden)
        return super()._verify()


@pytest.mark.parametrize(
    ("mutant", "error"),
    [
        (KeepsOldCandidates, "did not foresee|a stale draft|a path|a row's parent"),
        (HangsBranchesOneOff, "a stale draft|a path|the draft's cache"),
        (RunsOtherRows, "other rows"),
    ],
)
def test_mutants_are_caught(mutant: Any, error: str) -> None:
    kinds = {"drafter" if issubclass(mutant, MirrorDraftSide) else "verifier": mutant}
    caught(lambda seed: MirrorPlay(Case.drawn(seed), **kinds), ALL_SEEDS, error)


def test_candidates_are_ids_that_a_verdict_can_correct_to() -> None:
    play = MirrorPlay(Case.drawn(3))
    assert isinstance(play.verifier, MirrorVerifier)
    play.prepare(1, play.case.request())
    while not (isinstance(play.verifier, MirrorVerifier) and play.verifier.candidates):
        assert play.verifier.step() is not Progress.FINISHED
        play.drafter.step()
    logits = torch.full((1 + len(play.verifier.tree.tokens), 3), 1.0)  # a vocabulary of three, two of which end the text
    found = play.verifier._candidates(logits)
    assert all(set(group) <= {2, NONE} for group in found)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"num_candidates": 0}, "method.num_candidates"),
        ({"exit_layer": 0}, "method.exit_layer"),
        ({"draft_length": 0}, "method.draft_length"),
        ({"fallback": "wait"}, "method.fallback"),
        ({"draft_cores": 0}, "method.draft_cores"),
        ({"rule": "ratio"}, "method.rule"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        MirrorSd(**options)
    assert caught.value.key == key
