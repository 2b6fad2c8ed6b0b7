"""SSD's two sides under a seeded scheduler in one process: output, records, hits; and mutants whose caches are stale."""

from __future__ import annotations

import collections
import functools
import itertools
import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from fake_sessions import EOS_IDS, FakeBranching, FakeSession, agreement, autoregressive, imitation
from interleaving import Deadlock, Sample, Timing, all_met, caught, counting_mailbox, interleave, played

from specbench.config.compose import compose
from specbench.engine.request import Request
from specbench.measure.records.events import Round
from specbench.methods.overlap.ssd import Ssd
from specbench.parts.rules.rule import RULES
from specbench.parts.schedules.calibration import largest_fitting
from specbench.parts.schedules.foreseeing.draft import DraftSide, book_draft_report
from specbench.parts.schedules.foreseeing.fan_out import Acceptance, fan_out, length_chances
from specbench.parts.schedules.foreseeing.plan import FALLBACKS, HIT, LAST, MISS, Branch, Plan
from specbench.parts.schedules.foreseeing.verify import Verifier
from specbench.processes.mailbox import Message
from specbench.processes.steps import Progress

NUM_SEEDS, ALL_SEEDS = 120, 4000


@dataclass
class Case(Sample):
    """One sample and everything that its schedule depends on."""

    seed: int
    max_new_tokens: int
    draft_length: int
    budget: int
    fallback: str
    temperature: float
    agreement: str
    rate: float
    eos_rate: float
    timing: Timing

    @classmethod
    def drawn(cls, seed: int) -> Case:
        rng = random.Random(seed)
        return cls(
            seed=seed,
            max_new_tokens=rng.choices([1, 2, 3, 4, 5, 7, 17, 33], [1, 1, 1, 1, 1, 1, 3, 3])[0],
            draft_length=rng.randrange(1, 7),
            budget=rng.choice([1, 2, 4, 8, 16]),
            fallback=rng.choice(FALLBACKS),
            temperature=rng.choice([0.0, 0.7]),
            agreement=rng.choice(["always", "never", "random", "random", "bursts"]),
            rate=rng.choice([0.5, 0.8, 0.95]),
            eos_rate=rng.choice([0.0, 0.02, 0.1]),
            timing=Timing.drawn(rng),
        )


class Play:
    """Both sides on one mailbox, and the checks that hold for every sample. The classes are replaceable by mutants."""

    def __init__(self, case: Case, drafter: type[DraftSide] = DraftSide, verifier: type[Verifier] = Verifier):
        self.case, self.seen = case, collections.Counter[str]()
        language, law = case.language(), case.law()
        self.mailbox = counting_mailbox()
        self.drafter = drafter(self.mailbox, law, case.draft_length, case.fallback, decay=1.0)
        self.table = functools.cache(imitation(language, agreement(case.agreement, case.rate, case.seed, 0)))
        self.drafter.session = FakeBranching(self.table)
        rule = RULES["greedy_match" if law.greedy else "sample_match"]
        self.verifier = verifier(self.mailbox, law, rule, case.draft_length, FakeSession(language.logits))

    def sample(self, number: int, request: Request) -> None:
        self.prepare(number, request)
        self.forwards_before = self.drafter.session.num_forwards
        rng = random.Random(self.case.seed * 31 + number)
        sides = [self.verifier, self.drafter]
        interleave(sides, rng, self.case.timing, self.mailbox, self.state, lambda what: self.seen.update([what]), self.meets)
        self.check(request)

    def prepare(self, number: int, request: Request) -> None:
        plan = Plan(number, request, self.case.budget)
        self.verifier.prepare(plan)
        self.drafter.prepare(plan)
        self.drafts: list[list[int]] = []

    def meets(self) -> None:
        """Every draft is the draft model's own word behind what is committed, whoever prepared it and when."""
        side, case = self.verifier, self.case
        if side._next == side._verify and len(self.drafts) == len(side.books._rounds):
            self.drafts.append(list(side.tree.tokens))
            prefix, output, law = list(side.request.prompt_ids), side.books.output, case.law()
            looked_up = self.drafter.phase == MISS and case.fallback == "lookup"
            for place, token in enumerate([] if looked_up else side.tree.tokens):
                text = (*prefix, *output, *side.tree.tokens[:place])
                scores = law.scores(torch.tensor([self.table(text)]), [len(output) + place], side.request.noise_key)
                assert token == int(scores.argmax()), f"a stale draft: {self.state()}"

    def state(self) -> str:
        v, d = self.verifier, self.drafter
        return f"{self.case}: target has {v.books.output}, round {v.round_number}; draft has {d.tokens} and {d.chain}"

    def check(self, request: Request) -> None:
        verifier, drafter, case = self.verifier, self.drafter, self.case
        expected, finish = autoregressive(case.language().logits, case.law(), request)
        assert (verifier.books.output, verifier.books.finish) == (expected, finish), f"wrong output: {self.state()}"
        book_draft_report(verifier.books, drafter.report)
        rounds = verifier.books.outcome().rounds
        assert len(rounds) == len(drafter.report.rounds)
        assert sum(r.num_emitted for r in rounds) + 1 == len(expected)
        assert all(r.num_accepted <= r.num_drafted <= case.draft_length for r in rounds)
        assert all(r.num_discarded == r.num_drafted - r.num_accepted == r.rollback_depth for r in rounds)
        assert all(r.phase in (HIT, MISS, LAST) for r in rounds)
        assert all(r.phase == MISS or (r.num_drafted > 0) == (r.phase == HIT) for r in rounds)
        assert sum(r.num_draft_forwards for r in rounds) in (drafter.report.num_forwards, 0)
        assert drafter.report.num_forwards == drafter.session.num_forwards - self.forwards_before - 1, "and the prefill"
        made = sum(forward.made for forward in drafter.forwards)
        own = sum(forward.made for forward in drafter.forwards if forward.kept == forward.made)
        unused = drafter.report.num_unused
        least = made - own - sum(r.num_drafted for r in rounds)  # what neither is the sequence's own nor was shown
        assert not rounds or least <= unused <= made, "prepared, and gone"
        assert drafter.tokens == expected
        fed = drafter.session.fed
        assert fed == [*request.prompt_ids, *expected][: len(fed)], "what was not accepted is in the draft's cache"
        self.count(rounds)

    def count(self, rounds: list[Round]) -> None:
        for r in rounds:
            self.seen[r.phase] += 1
            self.seen[f"{r.phase}, {self.case.fallback}"] += 1
            self.seen["hit, cut short"] += r.phase == HIT and r is not rounds[-1] and r.num_drafted < self.case.draft_length
            self.seen["partial acceptance"] += 0 < r.num_accepted < r.num_drafted
            self.seen["bonus"] += r.num_accepted == r.num_drafted > 0 and r.num_emitted > r.num_accepted
        for one, two in itertools.pairwise(rounds):
            self.seen["hit behind a rejection"] += one.num_accepted < one.num_drafted and two.phase == HIT
            self.seen["hit behind a hit"] += one.phase == two.phase == HIT
        self.seen["unused"] += self.drafter.report.num_unused > 0
        self.seen["hit behind the prefill"] += bool(rounds) and rounds[0].phase == HIT
        self.seen[f"finish {self.verifier.books.finish}"] += 1
        self.seen["first token ends it"] += not rounds
        self.seen["sampled"] += self.case.temperature > 0


SITUATIONS = (
    HIT, LAST, "miss, draft", "miss, lookup", "hit, cut short", "unused", "partial acceptance", "bonus", "hit behind a hit",
    "hit behind a rejection", "hit behind the prefill", "finish eos", "finish length", "first token ends it", "sampled",
    "spurious wake-up", "time-out without news",
)  # fmt: skip


@pytest.mark.parametrize("num_seeds", [NUM_SEEDS, pytest.param(ALL_SEEDS, marks=pytest.mark.slow)])
def test_every_interleaving_gives_the_targets_own_output(num_seeds: int) -> None:
    seen = played(lambda seed: Play(Case.drawn(seed)), num_seeds)
    all_met(seen, SITUATIONS, least=num_seeds // 20)


def test_samples_follow_each_other_on_one_mailbox() -> None:
    """Nothing of the sample before is news, and one that the target's side gives up stops the draft."""
    for seed in range(20):
        play = Play(Case.drawn(seed))
        for number in range(1, 5):
            other = Case.drawn(seed * 5 + number).request()
            play.sample(number, Request("s", number, other.prompt_ids, other.max_new_tokens, EOS_IDS, other.noise_key))
            play.prepare(100 + number, other)
            for _ in range(seed % 11):
                if Progress.FINISHED in (play.verifier.step(), play.drafter.step()):
                    break
            play.verifier.stop()
            interleave([play.drafter], random.Random(seed))


# ------------------------------------------------------------------------------------------------ mutants
class WrongVerdict(DraftSide):
    """Takes the branch of the right token behind the wrong length, where there is one."""

    def _chosen(self, accepted: int, bonus: int) -> Branch | None:
        found = [branch for (_, token), branch in self.branches.items() if token == bonus and branch.tokens]
        return found[-1] if found else None


class KeepsOldEntries(DraftSide):
    """Leaves the entries of the last chain in the cache when it plans for the next: their rows are gone."""

    def _plan(self) -> None:
        old = {key: branch for key, branch in getattr(self, "old", {}).items() if branch.tokens}
        super()._plan()
        self.branches |= {key: branch for key, branch in old.items() if key not in self.branches}
        self.old = dict(self.branches)
        for branch in old.values():
            branch.complete = True


class KeepsItsCache(DraftSide):
    """Does not forget what the target has rejected."""

    def _take(self, message: Message) -> None:
        rollback, self.session.rollback = self.session.rollback, lambda length: self.session.branch()
        super()._take(message)
        self.session.rollback = rollback


class AnswersAnyRound(Verifier):
    """Takes whatever draft is there for the one of its round."""

    def _meet(self) -> Progress:
        number, self.round_number = self.round_number, self.inbox._state.epoch  # type: ignore[attr-defined]
        progress = super()._meet()
        self.round_number = number
        return progress


class AcknowledgesUnread(DraftSide):
    """Takes the version for read that it sees after a forward."""

    def _grow(self) -> Progress:
        progress = super()._grow()
        self.seen_version = self.inbox.version()
        return progress


class ForgetsTheUnused(DraftSide):
    """Does not write down what it prepared in vain."""

    def _take(self, message: Message) -> None:
        super()._take(message)
        self.report.num_unused = 0


STALE = "stale draft|a path|list index out of range|cache|nothing to feed"


@pytest.mark.parametrize(
    ("mutant", "error"),
    [
        (WrongVerdict, STALE),
        (KeepsOldEntries, STALE),
        (KeepsItsCache, STALE),
        (AnswersAnyRound, "stale draft|one verdict at a time"),
        (AcknowledgesUnread, "all wait"),
        (ForgetsTheUnused, "prepared, and gone"),
    ],
)
def test_mutants_are_caught(mutant: Any, error: str) -> None:
    kinds = {"drafter": mutant} if issubclass(mutant, DraftSide) else {"verifier": mutant}
    found = caught(lambda seed: Play(Case.drawn(seed), **kinds), ALL_SEEDS, error, IndexError)
    assert isinstance(found, Deadlock) == (error == "all wait")


# ------------------------------------------------------------------------------------------------ single rules
def test_the_fan_out_is_the_papers_in_whole_numbers() -> None:
    """F_j goes with a^(j / (1 + r)) and the last with (1 - a)^(-1 / (1 + r)) more (2603.03251, section 4)."""
    for rate, decay, length in ((0.8, 1.0, 4), (0.6, 0.5, 3), (0.9, 2.0, 6)):
        budget, power = 20_000, 1 / (1 + decay)
        found = fan_out(budget, length_chances(rate, length), decay)
        shares = [rate ** (j * power) * (1 - rate) ** (-power if j == length else 0) for j in range(length + 1)]
        assert sum(found) == budget
        assert found == pytest.approx([budget * share / sum(shares) for share in shares], rel=0.01)
    assert fan_out(3, length_chances(0.9, 3), 1.0) == [1, 0, 0, 2], "0.1 against 0.729 / 9"
    assert fan_out(5, [], 1.0) == [] and fan_out(0, [1.0], 1.0) == [0]


def test_acceptance_counts_the_first_rejected_draft_alone() -> None:
    rate = Acceptance()
    before = rate.rate
    for _ in range(500):
        rate.learn(4, 1)  # two were judged, one stood
    assert before == pytest.approx(0.7) and rate.rate == pytest.approx(0.5, abs=0.01)


def test_the_budget_is_the_largest_that_fits() -> None:
    asked: list[int] = []

    def seconds(size: int) -> float:
        asked.append(size)
        return float(size)

    assert largest_fitting((1, 2, 3, 4, 6, 8), seconds, 4.5) == 4 and asked == [2, 3, 4, 6]
    assert largest_fitting((1, 2, 3), seconds, 0.5) == 1


def test_a_budget_for_every_verdict_hits_always() -> None:
    """A draft that has the time and a branch for every token misses nothing; without a branch it foresees nothing."""
    for seed in range(8):
        case = Case.drawn(seed)
        case.max_new_tokens, case.budget, case.eos_rate, case.draft_length = 33, 12 * 5, 0.0, 4
        case.timing = Timing(target_weight=1e-9)
        play = Play(case)
        play.sample(1, case.request())
        assert play.seen[MISS] == 0 < play.seen[HIT]


def test_the_yaml_holds_the_defaults() -> None:
    node = {key: value for key, value in compose(["method=ssd"]).method.items() if key != "_target_"}
    assert vars(Ssd(**node).schedule) == vars(Ssd().schedule)
