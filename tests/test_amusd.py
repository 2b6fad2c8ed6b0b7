"""AMUSD's two sides under a seeded scheduler, in one process: hundreds of interleavings, and mutants that must fail.

`interleaving` steps the sides; a side that waits runs again when its slot changed, at a time-out, or for no reason.
"""

from __future__ import annotations

import collections
import inspect
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_sessions import EOS_IDS, FakeSession, agreement, autoregressive, imitation
from interleaving import Deadlock, Sample, Timing, all_met, caught, counting_mailbox, interleave, played

from specbench.config.options import ConfigError
from specbench.engine.request import Request
from specbench.engine.sampling import SamplingLaw
from specbench.engine.tree import Verdict
from specbench.measure.records.events import Round
from specbench.methods.overlap.amusd import Amusd
from specbench.parts.rules.rule import RULES
from specbench.parts.schedules.free_running.draft import DraftSide
from specbench.parts.schedules.free_running.verify import STALE_POLICIES, Verifier, book_draft_report
from specbench.processes.mailbox import DONE
from specbench.processes.steps import Order, Progress

NUM_SEEDS, ALL_SEEDS = 800, 1500


# ------------------------------------------------------------------------------------------------ what really happened
class WatchedDrafter(DraftSide):
    """Notes the situations that a test must have met."""

    seen: collections.Counter[str]

    def _discard_from(self, index: int) -> None:
        if index < len(self.tokens) and self.inbox._state.flag != DONE:  # type: ignore[attr-defined]
            self.seen["private rollback" if index >= self.published else "published rollback"] += 1
        super()._discard_from(index)

    def _may_draft(self) -> bool:
        may = super()._may_draft()
        if not may and self.verified:
            request, ahead = self.order.request, len(self.tokens) - self.verified
            if ahead >= self.max_lookahead:
                self.seen["lookahead full"] += 1
            elif self.tokens[-1] in request.eos_ids:
                self.seen["stopped behind a drafted EOS"] += 1
            else:
                self.seen["stopped at the length limit"] += 1
        return may


@dataclass
class Case(Sample):
    """One interleaving and everything that it depends on."""

    seed: int
    max_new_tokens: int
    draft_length: int
    max_lookahead: int
    stale: str
    temperature: float
    agreement: str
    rate: float
    eos_rate: float
    timing: Timing

    @classmethod
    def drawn(cls, seed: int) -> Case:
        rng = random.Random(seed)
        draft_length = rng.randrange(9)
        return cls(
            seed=seed,
            max_new_tokens=rng.choices([1, 2, 3, 5, 7, 17, 24, 33], [1, 1, 1, 1, 1, 3, 3, 3])[0],
            draft_length=draft_length,
            max_lookahead=max(1, draft_length) + rng.choice([0, 0, 1, 3, 8, 64]),
            stale=rng.choice(STALE_POLICIES),
            temperature=rng.choice([0.0, 0.0, 0.7]),
            agreement=rng.choice(["always", "never", "random", "random", "bursts"]),
            rate=rng.choice([0.5, 0.8, 0.95]),
            eos_rate=rng.choice([0.0, 0.02, 0.1]),
            timing=Timing.drawn(rng),
        )


class Play:
    """Both sides on one mailbox, and the checks that hold for every sample. The classes are replaceable by mutants."""

    def __init__(self, case: Case, drafter: type[DraftSide] = WatchedDrafter, verifier: type[Verifier] = Verifier):
        self.case, self.seen = case, collections.Counter[str]()
        language, law = case.language(), case.law()
        self.mailbox = counting_mailbox()
        self.drafter = drafter(self.mailbox, law, case.max_lookahead)
        self.drafter.seen = self.seen  # type: ignore[attr-defined]
        agrees = agreement(case.agreement, case.rate, case.seed, 0)
        self.drafter.session = FakeSession(imitation(language, agrees))
        rule = RULES["greedy_match" if law.greedy else "sample_match"]
        target = FakeSession(language.logits)
        self.verifier = verifier(self.mailbox, law, rule, case.draft_length, case.stale, target)

    def sample(self, number: int, request: Request) -> None:
        """Schedule one sample to its end and check it."""
        rng = random.Random(self.case.seed * 31 + number)
        order = Order(number, request)
        self.verifier.prepare(order)
        self.drafter.prepare(order)
        self.schedule(rng)
        self.check(request)

    def schedule(self, rng: random.Random) -> None:
        sides, case = [self.verifier, self.drafter], self.case
        self.epoch = 0
        interleave(sides, rng, case.timing, self.mailbox, self.state, lambda what: self.seen.update([what]), self.check_epochs)

    def check_epochs(self) -> None:
        assert self.verifier.epoch >= self.epoch, "the epoch went back"
        self.epoch = self.verifier.epoch
        assert self.drafter.epoch <= self.epoch, "an epoch that nobody gave"

    def state(self) -> str:
        v, d = self.verifier, self.drafter
        slot = self.mailbox.drafts.read(0)
        return (
            f"{self.case}: target has {v.books.output}, epoch {v.epoch}, agreed {v.agreed}; "
            f"draft has {d.tokens}, verified {d.verified}, published {d.published}, epoch {d.epoch}; slot {slot}"
        )

    def check(self, request: Request) -> None:
        """Output, integer identities and the agreement of both books."""
        verifier, drafter = self.verifier, self.drafter
        expected, finish = autoregressive(self.case.language().logits, self.case.law(), request)
        assert (verifier.books.output, verifier.books.finish) == (expected, finish), f"wrong output: {self.state()}"
        report = drafter.report
        book_draft_report(verifier.books, report)
        rounds = verifier.books.outcome().rounds
        assert sum(r.num_emitted for r in rounds) + 1 == len(expected)
        assert [r.epoch for r in rounds] == sorted(r.epoch for r in rounds)
        assert all(0 <= r.num_accepted <= r.num_drafted <= self.case.max_lookahead + 1 for r in rounds)
        assert all(r.num_accepted + 1 >= r.num_emitted >= max(1, r.num_accepted) for r in rounds)
        assert all(r.num_discarded == r.rollback_depth >= 0 and r.num_draft_forwards >= 0 for r in rounds)
        assert sum(r.num_discarded for r in rounds) == report.num_discarded
        assert sum(r.num_draft_forwards for r in rounds) == report.num_forwards
        # Rejected drafts are thrown away because of their round. What the draft made and kept stands in the output; some of it
        # was never verified, because it came when the target had said the same already.
        assert all(r.num_discarded >= r.num_drafted - r.num_accepted for r in rounds), "rejected drafts uncounted"
        kept = report.num_forwards - report.num_discarded
        assert sum(r.num_accepted for r in rounds) <= kept <= len(expected) - 1
        # What the draft holds at the end is the output, and its cache holds nothing else.
        assert drafter.tokens == expected
        fed = drafter.session.fed
        assert fed == [*request.prompt_ids, *expected][: len(fed)]
        self.count(rounds, request)

    def count(self, rounds: list[Round], request: Request) -> None:
        output, length = self.verifier.books.output, 1
        for r in rounds:
            full = r.num_accepted == r.num_drafted > 0
            self.seen["stale round"] += r.stale
            self.seen["stale round, answered by a plain step"] += r.stale and r.num_drafted == 0
            self.seen["full acceptance, mismatching bonus"] += full and r.rollback_depth > 0
            self.seen["accepted EOS"] += r.num_emitted == r.num_accepted and output[length + r.num_emitted - 1] in EOS_IDS
            self.seen["plain round"] += r.num_drafted == 0
            self.seen["partial acceptance"] += 0 < r.num_accepted < r.num_drafted
            self.seen["more than draft_length verified"] += r.num_drafted > self.case.draft_length
            length += r.num_emitted
        self.seen[f"finish {self.verifier.books.finish}"] += 1
        self.seen[f"limit {request.max_new_tokens}"] += 1
        self.seen["first token ends it"] += not rounds
        self.seen["slow verifier"] += self.case.timing.target_weight == 0.03
        self.seen["slow draft"] += self.case.timing.target_weight == 0.97
        self.seen["restless"] += self.case.timing.target_weight is None
        self.seen["draft far ahead"] += max((r.num_drafted for r in rounds), default=0) >= 12
        self.seen["sampled"] += self.case.temperature > 0


SITUATIONS = (
    "stale round",
    "stale round, answered by a plain step",
    "full acceptance, mismatching bonus",
    "private rollback",
    "published rollback",
    "accepted EOS",
    "stopped behind a drafted EOS",
    "stopped at the length limit",
    "lookahead full",
    "plain round",
    "partial acceptance",
    "more than draft_length verified",
    "finish eos",
    "finish length",
    "first token ends it",
    "slow verifier",
    "slow draft",
    "draft far ahead",
    "sampled",
    "spurious wake-up",
    "time-out without news",
    "restless",
    *(f"limit {n}" for n in (1, 2, 3, 5, 7, 17, 24, 33)),
)


@pytest.mark.parametrize("num_seeds", [NUM_SEEDS, pytest.param(ALL_SEEDS, marks=pytest.mark.deep)])
def test_every_interleaving_gives_the_targets_own_output(num_seeds: int) -> None:
    seen = played(lambda seed: Play(Case.drawn(seed)), num_seeds)
    all_met(seen, SITUATIONS, least=20)


def test_samples_follow_each_other_on_one_mailbox() -> None:
    """What stands in the slots from the sample before is no news, whatever its length."""
    for seed in range(100):
        case = Case.drawn(seed)
        play = Play(case)
        for number in range(1, 5):
            other = Case.drawn(seed * 5 + number)
            request = other.request()
            request = Request("s", number, request.prompt_ids, request.max_new_tokens, EOS_IDS, request.noise_key)
            play.sample(number, request)


# ------------------------------------------------------------------------------------------------ mutants
DEADLOCK = "target has .* draft has"


class TrustsDrafts(Verifier):
    """Takes every published draft for the target's own."""

    def _verify(self) -> Progress:
        logits = self.session.forward(self.tree).logits
        last = self.law.choose(logits[-1:], [self.books.position + len(self.tree.tokens)], self.order.request.noise_key)
        self.verdict = Verdict(tuple(range(len(self.tree.tokens))), (*self.tree.tokens, *last))
        self._next = self._publish
        return Progress.WORKED


class KeepsRejectedRows(Verifier):
    """Leaves rejected drafts in the target's cache."""

    def _publish(self) -> Progress:
        commit, self.session.commit = self.session.commit, self._commit
        progress = super()._publish()
        self.session.commit = commit
        return progress

    def _commit(self, verdict: Verdict) -> None:
        self.session.pending = verdict.extra


class NoiseOnePositionOff(Verifier):
    """Samples position i with the noise of position i + 1: invisible under the greedy law."""

    def _verify(self) -> Progress:
        law, choose = self.law, self.law.choose
        off = SamplingLaw(law.temperature, law.top_k, law.top_p, law.seed)
        object.__setattr__(off, "choose", lambda logits, at, key: choose(logits, [i + 1 for i in at], key))
        self.law = off
        progress = super()._verify()
        self.law = law
        return progress


class TrustsTags(Verifier):
    """Uses drafts by their epoch tag alone: the draft may have answered already, under the tag it knew then."""

    def _usable_drafts(self) -> list[int]:
        usable = super()._usable_drafts()
        return usable if self.inbox._state.epoch == self.epoch else []  # type: ignore[attr-defined]


class WaitsForMoreThanComes(Verifier):
    """Ignores that the draft stops at the length limit and at an EOS."""

    def _look(self) -> Progress:
        progress = super()._look()
        if len(self.usable) < self.draft_length:
            self._next = self._look
            return Progress.IDLE
        return progress

    def _usable_drafts(self) -> list[int]:
        self.usable = super()._usable_drafts()
        return self.usable


class AcknowledgesUnread(WatchedDrafter):
    """Takes the version for read that it sees after its forward: a lost wake-up."""

    def _draft(self) -> Progress:
        progress = super()._draft()
        self.seen_version = self.inbox.version()
        return progress


class LeavesOldDrafts(WatchedDrafter):
    """Rolls back without ever correcting what it has published."""

    def _discard_from(self, index: int) -> None:
        published = self.published
        super()._discard_from(index)
        self.published = published


class KeepsItsCache(WatchedDrafter):
    """Rolls its tokens back, not its cache."""

    def _discard_from(self, index: int) -> None:
        rollback, self.session.rollback = self.session.rollback, lambda length: None
        super()._discard_from(index)
        self.session.rollback = rollback


class ForgetsDiscards(WatchedDrafter):
    """Throws drafts away without writing it down."""

    def _discard_from(self, index: int) -> None:
        before = len(self.report.discards)
        super()._discard_from(index)
        del self.report.discards[before:]


@pytest.mark.parametrize(
    ("mutant", "error"),
    [
        (TrustsDrafts, "wrong output"),
        (KeepsRejectedRows, "wrong output|past the reserved capacity"),
        (NoiseOnePositionOff, "wrong output"),
        (TrustsTags, DEADLOCK),
        (WaitsForMoreThanComes, DEADLOCK),
        (AcknowledgesUnread, DEADLOCK),
        (LeavesOldDrafts, DEADLOCK),
        (KeepsItsCache, "nothing to feed"),
        (ForgetsDiscards, "rejected drafts uncounted"),
    ],
)
def test_mutants_are_caught(mutant: Any, error: str) -> None:
    kinds = {"drafter": mutant} if issubclass(mutant, DraftSide) else {"verifier": mutant}
    found = caught(lambda seed: Play(Case.drawn(seed), **kinds), ALL_SEEDS, error)
    assert isinstance(found, Deadlock) == (error == DEADLOCK)


def test_a_deadlock_is_reported_with_its_state() -> None:
    for seed in range(200):
        case = Case.drawn(seed)
        try:
            Play(case, verifier=WaitsForMoreThanComes).sample(1, case.request())
        except Deadlock as deadlock:
            for fact in ("Case(seed=", "draft has", "published", "epoch", "slot"):
                assert fact in str(deadlock)
            return
    raise AssertionError("no deadlock to report")


# ------------------------------------------------------------------------------------------------ single rules
def test_a_stopped_sample_stops_the_draft_and_the_next_one_is_right() -> None:
    """Whenever the target's side gives up, the draft finishes, and both are as good as new."""
    for seed in range(150):
        case = Case.drawn(seed)
        play = Play(case)
        rng = random.Random(seed)
        order = Order(1, case.request())
        play.verifier.prepare(order)
        play.drafter.prepare(order)
        for _ in range(rng.randrange(1, 40)):
            side = rng.choice([play.verifier, play.drafter])
            if side.step() is Progress.FINISHED:
                break
        play.verifier.stop()
        for _ in range(20):
            if play.drafter.step() is Progress.FINISHED:
                break
        else:
            raise AssertionError("the draft goes on")
        assert play.drafter.tokens == play.verifier.books.output
        play.sample(2, case.request())


def test_stale_policies_differ_where_they_should() -> None:
    """After a stale draft `plain` takes a step at once, `wait` none."""
    for policy, plain_steps in (("plain", True), ("wait", False)):
        rounds: list[Round] = []
        for seed in range(60):
            case = replace(Case.drawn(seed), max_new_tokens=40, draft_length=3, max_lookahead=8, stale=policy)
            case = replace(case, eos_rate=0.0, timing=replace(case.timing, slow_forward=True), agreement="random", rate=0.8)
            play = Play(case)
            play.sample(1, case.request())
            room = case.max_new_tokens - 1
            for r in play.verifier.books.outcome().rounds:
                room -= r.num_emitted
                if r.stale and room >= 1:
                    rounds.append(r)
        assert len(rounds) > 20
        assert any(r.num_drafted == 0 for r in rounds) == plain_steps


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"draft_length": -1}, "method.draft_length"),
        ({"draft_length": True}, "method.draft_length"),
        ({"draft_length": 2.0}, "method.draft_length"),
        ({"max_lookahead": 0}, "method.max_lookahead"),
        ({"draft_length": 5, "max_lookahead": 4}, "method.max_lookahead"),
        ({"stale": "fresh"}, "method.stale"),
        ({"draft_cores": 0}, "method.draft_cores"),
        ({"rule": "ratio"}, "method.rule"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Amusd(**options)
    assert caught.value.key == key


def test_the_yaml_declares_the_constructors_defaults() -> None:
    """What `--cfg job` prints is what the class does without a configuration."""
    text = (Path(__file__).resolve().parents[1] / "conf" / "method" / "amusd.yaml").read_text()
    written = yaml.safe_load(text)
    options = {
        name: parameter.default
        for name, parameter in inspect.signature(Amusd).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    assert {key: value for key, value in written.items() if key not in ("defaults", "_target_")} == options
