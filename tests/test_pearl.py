"""PEARL's two sides under a seeded scheduler in one process: output, records, tokens per step, exact law; then in two.

`interleaving` steps the sides. Mutants put a known fault into one side and must fail the same checks.
"""

from __future__ import annotations

import collections
import inspect
import random
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fake_sessions import EOS_IDS, FakeSession, agreement, autoregressive, imitation
from interleaving import Sample, Timing, all_met, interleave, played
from law_tools import Language as Law
from law_tools import branches, law_of, worst_error
from preloaded import fork_workers

from specbench.config.options import ConfigError
from specbench.config.schema import PairConfig
from specbench.engine.request import Request
from specbench.engine.runtime import Runtime
from specbench.engine.sampling import SamplingLaw, noise_key
from specbench.engine.tree import DraftTree, Verdict
from specbench.measure.metrics import RoundTable, accepted_run_length, check_identities
from specbench.measure.records.events import Round, SampleRecord
from specbench.method import Method
from specbench.methods.overlap.pearl import Pearl
from specbench.pair.load import check_pair, draft_loader, eos_ids, load_model, load_tokenizer
from specbench.pair.spec import specify
from specbench.parts.rules.rule import RULES
from specbench.parts.schedules.calibration import MAX_LENGTH, balanced_length
from specbench.parts.schedules.lockstep.draft import DraftSide
from specbench.parts.schedules.lockstep.plan import Plan
from specbench.parts.schedules.lockstep.rows import RowBuffer
from specbench.parts.schedules.lockstep.verify import Verifier
from specbench.processes.mailbox import Mailbox
from specbench.processes.steps import Progress

NUM_SEEDS = 600


# ------------------------------------------------------------------------------------- every interleaving, every pattern
@dataclass
class Case(Sample):
    """One sample and everything that its schedule depends on."""

    seed: int
    max_new_tokens: int
    draft_length: int
    temperature: float
    rule: str
    choice: str
    pre_verify: bool
    post_verify: bool
    agreement: str
    rate: float
    eos_rate: float
    target_weight: float

    @classmethod
    def drawn(cls, seed: int) -> Case:
        rng = random.Random(seed)
        temperature = rng.choice([0.0, 0.7])
        return cls(
            seed=seed,
            max_new_tokens=rng.choices([1, 2, 3, 4, 5, 7, 17, 33], [1, 1, 1, 1, 1, 1, 3, 3])[0],
            draft_length=rng.randrange(1, 7),
            temperature=temperature,
            # At temperature 0 every exact rule has one possible output.
            rule="sample_match" if temperature else rng.choice(["greedy_match", "sample_match", "delta", "lockstep_ratio"]),
            choice=rng.choice(["keyed", "greedy"]),
            pre_verify=rng.random() < 0.75,
            post_verify=rng.random() < 0.75,
            agreement=rng.choice(["always", "never", "random", "random", "bursts"]),
            rate=rng.choice([0.5, 0.8, 0.95]),
            eos_rate=rng.choice([0.0, 0.02, 0.1]),
            target_weight=rng.choice([0.05, 0.5, 0.95]),
        )


class Play:
    """Both sides on one mailbox, and the checks that hold for every sample. The classes are replaceable by mutants."""

    def __init__(self, case: Case, drafter: type[DraftSide] = DraftSide, verifier: type[Verifier] = Verifier):
        self.case, self.seen = case, collections.Counter[str]()
        language, law, mailbox = case.language(), case.law(), Mailbox.local()
        rows = RowBuffer(case.draft_length, 12) if case.rule == "lockstep_ratio" else None
        self.drafter = drafter(mailbox, law, case.choice, rows)
        self.drafter.session = FakeSession(imitation(language, agreement(case.agreement, case.rate, case.seed, 0)))
        self.verifier = verifier(mailbox, law, RULES[case.rule], FakeSession(language.logits), rows)

    def sample(self, number: int, request: Request) -> None:
        case = self.case
        plan = Plan(number, request, case.draft_length, case.pre_verify, case.post_verify)
        self.verifier.prepare(plan)
        self.drafter.prepare(plan)
        self.forwards_before = self.drafter.session.num_forwards
        rng = random.Random(case.seed * 31 + number)
        interleave([self.verifier, self.drafter], rng, Timing(case.target_weight))
        self.check(request)

    def check(self, request: Request) -> None:
        """Output, integer identities, and what the draft holds at the end."""
        verifier, drafter, case = self.verifier, self.drafter, self.case
        expected, finish = autoregressive(case.language().logits, case.law(), request)
        books = verifier.books
        assert (books.output, books.finish) == (expected, finish), case
        rounds, report = books.outcome().rounds, drafter.report
        assert sum(r.num_emitted for r in rounds) + 1 == len(expected)
        for r in rounds:
            assert 0 <= r.num_accepted <= r.num_drafted == r.draft_depth <= case.draft_length + (not case.pre_verify)
            assert r.num_emitted in (r.num_accepted, r.num_accepted + 1)
            assert r.num_drafted <= r.num_target_rows
            assert (r.num_discarded > 0) == (r.num_accepted < r.num_drafted)
            assert r.phase == ("pre" if r.num_target_rows == 1 else "post")
        assert all(r.num_drafted <= 1 for r in rounds if r.phase == "pre")
        assert sum(r.num_draft_forwards for r in rounds) == report.num_forwards
        assert report.num_forwards == drafter.session.num_forwards - self.forwards_before - 1, "and the prefill"
        assert sum(r.num_discarded for r in rounds) == report.num_discarded
        assert sum(r.num_accepted for r in rounds) + report.num_discarded == report.num_forwards, "drafts stand or fall"
        assert [r.epoch for r in rounds] == [sum(s.num_discarded > 0 for s in rounds[:i]) for i in range(len(rounds))]
        assert drafter.tokens == expected
        fed = drafter.session.fed
        assert fed == [*request.prompt_ids, *expected][: len(fed)], "rejected drafts are in the draft's cache"
        fed = verifier.session.fed
        assert fed == [*request.prompt_ids, *expected][: len(fed)] and len(fed) >= len(request.prompt_ids) + len(expected) - 1
        self.count(rounds, request)

    def count(self, rounds: list[Round], request: Request) -> None:
        for r in rounds:
            full = r.num_accepted == r.num_drafted
            self.seen[f"{r.phase}, {'stands' if full else 'falls'}"] += r.num_drafted > 0
            self.seen["plain step"] += r.num_drafted == 0
            self.seen["bonus"] += full and r.num_emitted > r.num_accepted > 0
            self.seen["post, falls at the new block"] += r.phase == "post" and r.num_accepted == r.num_drafted - 1
            self.seen["accepted EOS"] += r.num_emitted == r.num_accepted and r is rounds[-1]
        output = self.verifier.books.output
        self.seen["rejected, then EOS"] += bool(rounds) and rounds[-1].num_discarded > 0 and output[-1] in EOS_IDS
        self.seen[f"finish {self.verifier.books.finish}"] += 1
        self.seen[f"limit {request.max_new_tokens}"] += 1
        self.seen["first token ends it"] += not rounds
        self.seen[f"rule {self.case.rule}"] += 1
        for name in ("pre_verify", "post_verify"):
            self.seen[f"{name} off"] += not getattr(self.case, name)


SITUATIONS = (
    "pre, stands", "pre, falls", "post, stands", "post, falls", "plain step", "bonus", "post, falls at the new block",
    "accepted EOS", "rejected, then EOS", "finish eos", "finish length", "first token ends it",
    "pre_verify off", "post_verify off",
    *(f"rule {rule}" for rule in ("greedy_match", "sample_match", "delta", "lockstep_ratio")),
    *(f"limit {n}" for n in (1, 2, 3, 4, 5, 7, 17, 33)),
)  # fmt: skip


def test_every_schedule_gives_the_targets_own_output() -> None:
    seen = played(lambda seed: Play(Case.drawn(seed)), NUM_SEEDS)
    all_met(seen, SITUATIONS, least=20)


def test_samples_follow_each_other_on_one_mailbox() -> None:
    """What stands in the slots from the sample before is no news, whatever its length; a stopped sample leaves nothing."""
    for seed in range(60):
        case = Case.drawn(seed)
        play = Play(case)
        for number in range(1, 5):
            other = Case.drawn(seed * 5 + number).request()
            play.sample(number, Request("s", number, other.prompt_ids, other.max_new_tokens, EOS_IDS, other.noise_key))
            if seed % 3 == 0:
                plan = Plan(100 + number, other, case.draft_length, case.pre_verify, case.post_verify)
                play.verifier.prepare(plan)
                play.drafter.prepare(plan)
                for _ in range(seed % 11):
                    if Progress.FINISHED in (play.verifier.step(), play.drafter.step()):
                        break
                play.verifier.stop()
                interleave([play.drafter], random.Random(seed))


class EmitsTheBlock(Verifier):
    """Commits a block whose first token stood as a whole: an unverified tail."""

    def _decide(self) -> tuple[int, list[int]]:
        accepted, tokens = super()._decide()
        return accepted, [*tokens, *self.block[1:]] if accepted == len(self.unverified) + len(self.block[:1]) else tokens


class KeepsRejectedRows(Verifier):
    """Leaves rejected drafts in the target's cache."""

    def prepare(self, plan: Plan) -> None:
        super().prepare(plan)
        self.session.commit = lambda verdict: setattr(self.session, "pending", verdict.extra)


class NoiseOnePositionOff(Verifier):
    """Samples position i with the noise of position i + 1: invisible under the greedy law."""

    def _judge(self, rule: Any, tree: DraftTree) -> Verdict:
        self.books.output.append(0)
        verdict = super()._judge(rule, tree)
        self.books.output.pop()
        return verdict


class ForgetsToRollBack(DraftSide):
    """Leaves rejected drafts in the draft's cache: the output stays right, the draft does not."""

    def _take(self, news: list[int], kept: bool) -> None:
        rollback, self.session.rollback = self.session.rollback, lambda length: None
        super()._take(news, kept)
        self.session.rollback = rollback
        if not kept:
            self.session.rollback(min(self.session.length, len(self.request.prompt_ids) + self.committed))


class DraftsPastEos(DraftSide):
    """Goes on behind an EOS of its own: such tokens are never verified."""

    def _draft(self) -> Progress:
        eos, self.request = self.request.eos_ids, self.request.__class__(**{**vars(self.request), "eos_ids": frozenset()})
        progress = super()._draft()
        self.request = self.request.__class__(**{**vars(self.request), "eos_ids": eos})
        return progress


class MistakesOldBlocks(Verifier):
    """Does not look at the step's number: the block of the step before passes for the new one."""

    def _meet(self) -> Progress:
        number, self.step_number = self.step_number, self.inbox.read(0).epoch
        progress = super()._meet()
        self.step_number = number
        return progress


@pytest.mark.parametrize(
    "mutant", [EmitsTheBlock, KeepsRejectedRows, NoiseOnePositionOff, ForgetsToRollBack, DraftsPastEos, MistakesOldBlocks]
)
def test_mutants_are_caught(mutant: type) -> None:
    side = {"drafter": mutant} if issubclass(mutant, DraftSide) else {"verifier": mutant}
    for seed in range(300):
        case = Case.drawn(seed)
        try:
            Play(case, **side).sample(1, case.request())
        except (AssertionError, IndexError):
            return
    pytest.fail(f"{mutant.__name__}: {mutant.__doc__}")


# ------------------------------------------------------------------------------------------------ records, by hand
def one_sample(
    target: Any, draft: Any, plan: Plan, verifier: type[Verifier] = Verifier, law: SamplingLaw | None = None
) -> Verifier:
    """Greedy unless `law` says otherwise; tables are functions of the prefix."""
    law, mailbox = law or SamplingLaw(), Mailbox.local()
    side = verifier(mailbox, law, RULES["greedy_match"], FakeSession(target))
    other = DraftSide(mailbox, law, "keyed")
    other.session = FakeSession(draft)
    side.prepare(plan)
    other.prepare(plan)
    interleave([side, other], random.Random(0))
    return side


def by_place(wrong: Any, vocab_size: int = 5) -> tuple[Any, Any]:
    """A target whose token follows from its place alone, and a draft that errs where `wrong(place)` says."""

    def logits(place: int, off: bool) -> list[float]:
        return [1.0 if token == (place + off) % vocab_size else 0.0 for token in range(vocab_size)]

    return lambda prefix: logits(len(prefix), False), lambda prefix: logits(len(prefix), wrong(len(prefix)))


def test_modes_windows_and_runs_of_a_known_pattern() -> None:
    """Prompt of 1: output position i is place i + 1. The draft errs at output positions 6 and 8 alone."""
    target, draft = by_place(lambda place: place in (7, 9))
    rounds = (
        one_sample(target, draft, Plan(1, Request("s", 0, (0,), 14, frozenset(), 0), draft_length=3)).books.outcome().rounds
    )
    columns = [(r.phase, r.num_drafted, r.num_accepted, r.num_emitted, r.num_discarded, r.num_draft_forwards) for r in rounds]
    assert columns == [
        ("pre", 1, 1, 1, 0, 3),  # drafts 1 to 3, 1 stands
        ("post", 3, 3, 3, 0, 3),  # drafts 4 to 6; 2, 3 and 4 stand
        ("post", 3, 1, 2, 4, 3),  # 5 stands, 6 falls: it, 7, 8 and 9 go
        ("pre", 1, 1, 1, 0, 3),  # 7 stands, with 8 and 9 behind it
        ("post", 3, 0, 1, 5, 3),  # 8 falls
        ("pre", 1, 1, 1, 0, 3),  # 9, 10, 11
        ("post", 3, 3, 3, 0, 1),  # the last position is the target's own: 12 is all there is to draft
        ("pre", 0, 0, 1, 0, 0),
    ]  # fmt: skip
    table = RoundTable.of({("s", 0, 0, "method"): rounds})
    assert accepted_run_length(table)["pooled"] == (5 + 1) / 2, "positions 1 to 5, then 7; the last run is cut off"


# ------------------------------------------------------------------------------------------------ the closed form
class StaysInPreVerify(Verifier):
    """A wrong mode switch: the rest of an accepted block is dropped, though the output stays right."""

    def _meet(self) -> Progress:
        progress = super()._meet()
        del self.block[1:]
        return progress


class ReturnsToPreVerify(Verifier):
    """A wrong mode switch: back to pre-verification after every post-verification, and not only after a rejection."""

    def _meet(self) -> Progress:
        progress = super()._meet()
        if self.unverified:
            del self.block[1:]
        return progress


def closed_form(alpha: float, gamma: int) -> float:
    """Expected tokens per step when every draft token stands with probability alpha, independently."""
    return (1 - alpha**gamma) / ((1 - alpha) * (1 - alpha**gamma + alpha))


def tokens_per_step(alpha: float, gamma: int, verifier: type[Verifier]) -> tuple[float, float]:
    """Mean over 12 samples of 400 tokens, and its standard error."""
    means = []
    for seed in range(12):
        chances = [random.Random(f"{alpha}/{gamma}/{seed}/{place}").random() for place in range(410)]
        target, draft = by_place(lambda place, chances=chances: chances[place] >= alpha)
        plan = Plan(1, Request("s", 0, (0,), 400, frozenset(), 0), gamma)
        rounds = one_sample(target, draft, plan, verifier).books.outcome().rounds
        means.append(sum(r.num_emitted for r in rounds) / len(rounds))
    return statistics.mean(means), statistics.stdev(means) / len(means) ** 0.5


RATES = [(0.5, 1), (0.6, 3), (0.8, 5), (0.9, 4)]


def off_by(alpha: float, gamma: int, verifier: type[Verifier]) -> float:
    """Distance from the closed form in units of what is allowed: 4 standard errors, and 1 % for both ends of a sample."""
    mean, error = tokens_per_step(alpha, gamma, verifier)
    expected = closed_form(alpha, gamma)
    return abs(mean - expected) / (4 * error + 0.01 * expected)


@pytest.mark.parametrize(("alpha", "gamma"), RATES)
def test_tokens_per_step_agree_with_the_closed_form(alpha: float, gamma: int) -> None:
    assert off_by(alpha, gamma, Verifier) < 1


@pytest.mark.parametrize("wrong", [StaysInPreVerify, ReturnsToPreVerify])
def test_a_wrong_mode_switch_leaves_the_closed_form(wrong: type[Verifier]) -> None:
    assert off_by(0.9, 4, wrong) > 2


# ------------------------------------------------------------------------------------------------ exact law
class Double(FakeSession):
    """Log-probabilities of a toy language of outputs, in double precision; the prompt is one token."""

    def feed(self, *args: Any, **options: Any) -> torch.Tensor:
        return super().feed(*args, **options).double()


def logs(language: Law) -> Any:
    return lambda prefix: language.after(prefix[1:]).log().tolist()


def schedule_law(target: Law, draft: Law, length: int, gamma: int, verifier: type[Verifier], **modes: bool) -> tuple[Any, Any]:
    """Exact law of what the whole schedule emits, branch by branch, and the target's own, both behind one first token."""
    at_one, vocab_size = SamplingLaw(1.0), target.vocab_size

    def body(rng: Any) -> tuple[int, ...]:
        mailbox, rows = Mailbox.local(), RowBuffer(gamma, vocab_size)
        side = verifier(mailbox, at_one, RULES["lockstep_ratio"], Double(logs(target)), rows)
        other = DraftSide(mailbox, at_one, "keyed", rows)
        other.session = Double(logs(draft))
        plan = Plan(1, Request("s", 0, (0,), length, frozenset(), 5), gamma, **modes)
        side.prepare(plan)
        other.prepare(plan)
        side.rng = other.rng = rng
        interleave([side, other], random.Random(0))
        return tuple(side.books.output)

    law: dict[tuple[int, ...], float] = {}
    for probability, output in branches(body):
        law[output] = law.get(output, 0.0) + probability
    (first,) = {output[:1] for output in law}
    return law, law_of(target, length, first)


ROWS_ARE_FLOATS = 1e-6  # the draft's rows travel in single precision


@pytest.mark.parametrize(
    ("vocab_size", "length", "gamma", "modes"),
    [
        (2, 5, 3, {}),
        (3, 4, 2, {}),
        (2, 5, 2, {"pre_verify": False}),
        (2, 5, 2, {"post_verify": False}),
        (2, 5, 1, {}),
    ],
    ids=str,
)
def test_the_papers_rule_keeps_the_targets_law_over_the_whole_schedule(
    vocab_size: int, length: int, gamma: int, modes: dict[str, bool]
) -> None:
    target, draft = Law(3, vocab_size), Law(503, vocab_size)
    assert worst_error(*schedule_law(target, draft, length, gamma, Verifier, **modes)) < ROWS_ARE_FLOATS


class ForgetsOldLaws(Verifier):
    """Judges unverified drafts by the laws of the new block: theirs did not survive the step."""

    def _decide(self) -> tuple[int, list[int]]:
        laws = (self.block_laws or self.unverified_laws) * 2
        self.unverified_laws = laws[: len(self.unverified)]
        for token, law in zip(self.unverified, self.unverified_laws, strict=True):
            law[token] = max(float(law[token]), 1e-9)
        return super()._decide()


class ResamplesFromTheTarget(Verifier):
    """After a rejection draws from p and not from what is left of it."""

    def _decide(self) -> tuple[int, list[int]]:
        accepted, tokens = super()._decide()
        if accepted < len(self.unverified) + len(self.block[:1]):
            tokens[-1] = self.rng.categorical(self.law.probabilities(self.evidence.logits)[accepted].double())
        return accepted, tokens


@pytest.mark.parametrize("wrong", [ForgetsOldLaws, ResamplesFromTheTarget])
def test_a_wrong_law_is_caught(wrong: type[Verifier]) -> None:
    target, draft = Law(3, 2), Law(503, 2)
    assert worst_error(*schedule_law(target, draft, 5, 2, wrong)) > 1e-3


# ------------------------------------------------------------------------------------------------ draft length and options
def test_the_balanced_length_is_the_rounded_ratio_with_the_rows_it_means() -> None:
    assert balanced_length(1.0, lambda rows: 4.4) == 4
    assert balanced_length(1.0, lambda rows: 3.5 + 0.3 * rows) == 5  # 1 row: 3.8; 4 rows: 4.7; 5 rows: 5.0
    assert balanced_length(1.0, lambda rows: 0.2) == 1
    assert balanced_length(1.0, lambda rows: 99.0) == MAX_LENGTH


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"draft_length": 0}, "method.draft_length"),
        ({"draft_length": "fast"}, "method.draft_length"),
        ({"draft_length": True}, "method.draft_length"),
        ({"rule": "ratio"}, "method.rule"),
        ({"rule": "typical"}, "method.rule"),
        ({"draft": "random"}, "method.draft"),
        ({"draft": "greedy", "rule": "lockstep_ratio"}, "method.draft"),
        ({"pre_verify": "no"}, "method.pre_verify"),
        ({"post_verify": 0}, "method.post_verify"),
        ({"draft_cores": 0}, "method.draft_cores"),
    ],
)
def test_options_out_of_range_name_themselves(options: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Pearl(**options)
    assert raised.value.key == key


def test_what_is_claimed() -> None:
    greedy, sampling = SamplingLaw(), SamplingLaw(0.7)
    assert Pearl().claim(greedy) == "greedy-exact" and Pearl().claim(sampling) == "sampling-exact"
    assert Pearl().same_ids(sampling) and Pearl(rule="lockstep_ratio").same_ids(greedy)
    assert not Pearl(rule="lockstep_ratio").same_ids(sampling) and not Pearl(rule="delta").same_ids(sampling)
    with pytest.raises(ConfigError, match="not exact"):
        Pearl(rule="greedy_match").rule_for(sampling)


def test_the_yaml_holds_the_defaults() -> None:
    path = Path(__file__).resolve().parents[1] / "conf" / "method" / "pearl.yaml"
    node = {k: v for k, v in yaml.safe_load(path.read_text()).items() if k not in ("defaults", "_target_")}
    assert node == {name: p.default for name, p in inspect.signature(Pearl).parameters.items()}


# ------------------------------------------------------------------------------------------------ two processes
PROMPTS = ("def fibonacci(n):\n", "import os\n\n\nclass Reader:\n    def __init__(self, path):\n")


@pytest.mark.parametrize(
    ("temperature", "options"), [(0.0, {"draft_length": 4}), (0.7, {"draft_length": "auto"})], ids=["greedy", "sampled"]
)
def test_two_processes_give_what_autoregression_gives(
    temperature: float, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fork_workers(monkeypatch)
    pair = specify(PairConfig("builtin", "builtin:target", "builtin:draft"))
    tokenizer = load_tokenizer(pair.target)
    pair = check_pair(pair, tokenizer)
    target = load_model(pair.target, pair.vocab_size)
    law, ends = SamplingLaw(temperature), eos_ids(target.module, tokenizer)
    runtime = Runtime(pair, target, None, law, 24, ends, trace=bool(temperature), load_draft=draft_loader(pair))
    reference, pearl = Method(), Pearl(**options)
    reference.open(runtime)
    samples, rounds = [], {}
    try:
        pearl.open(runtime)
        if options["draft_length"] == "auto":
            assert 1 <= pearl.facts()["draft_length"] <= MAX_LENGTH  # type: ignore[operator]
        for number, text in enumerate(PROMPTS):
            ids = tuple(tokenizer(text).input_ids)
            request = Request(str(number), 0, ids, 24, ends, noise_key(0, str(number), 0))
            expected, outcome = reference.decode(request), pearl.decode(request)
            assert (outcome.output_ids, outcome.finish_reason) == (expected.output_ids, expected.finish_reason)
            assert set(outcome.concurrent_seconds) == {"draft", "discarded_draft", "idle"}
            assert min(outcome.concurrent_seconds.values()) >= 0
            assert bool(outcome.spans) == bool(temperature)
            spent = sum(r.verify_seconds + r.wait_seconds for r in outcome.rounds)
            # A prompt that the target ends at once has no round.
            assert (spent > 0) == bool(outcome.rounds) and spent <= outcome.decode_seconds
            record = SampleRecord(
                str(number), 0, 0, "method", 0, None, ids, tuple(outcome.output_ids), outcome.finish_reason,
                outcome.prefill_seconds, outcome.decode_seconds, len(outcome.output_ids) - 1, len(outcome.rounds),
            )  # fmt: skip
            samples.append(record)
            rounds[record.key] = outcome.rounds
        assert any(rounds.values())
        check_identities(samples, RoundTable.of(rounds))
        assert pearl.memory_bytes()["mailbox"] > 0
    finally:
        pearl.close()
        pearl.close()
    assert pearl.schedule.worker is None  # type: ignore[attr-defined]
