"""Replayed drafts: methods keep the target's text under every pattern of errors, and accept exactly what the pattern says.

The counts are predicted in pure Python (analysis/schedules.py); the methods are untouched. Mutants of the draft must fail.
"""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import tiny
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from interleaving import interleave
from preloaded import fork_workers
from run_folders import BUILTIN

from specbench.config.compose import compose
from specbench.config.draft_errors import DraftErrors
from specbench.config.options import ConfigError
from specbench.config.schema import PairConfig
from specbench.engine.model import Model
from specbench.engine.request import Request
from specbench.engine.runtime import Runtime
from specbench.engine.sampling import SamplingLaw
from specbench.engine.session import Session
from specbench.measure.records import store
from specbench.measure.records.events import Round
from specbench.measure.theory.played import Step, accepted_run, lockstep, sequential
from specbench.methods.chains.autoregressive import Autoregressive
from specbench.methods.chains.speculative import Speculative
from specbench.pair.load import check_pair, load_model, load_tokenizer, pair_facts
from specbench.pair.scripted import ReplayModel, greedy_text
from specbench.pair.spec import specify
from specbench.parts.rules.rule import RULES
from specbench.parts.schedules.free_running import draft as async_draft
from specbench.parts.schedules.free_running import verify as async_verify
from specbench.parts.schedules.lockstep import draft as pearl_draft
from specbench.parts.schedules.lockstep import verify as pearl_verify
from specbench.parts.schedules.lockstep.plan import Plan
from specbench.processes.mailbox import Mailbox
from specbench.processes.steps import Order
from specbench.run.run import run

PATTERNS = ("never", "always", "iid:0.3", "iid:0.7@5", "every:3", "every:4", "bursts:6+3", "bursts:2+1", "end:0.4")
METHODS = ("speculative", "pearl", "amusd")
GREEDY, LIMIT = SamplingLaw(), 25


@pytest.fixture(scope="module")
def models() -> tuple[Model, Model]:
    """A target, and a draft that by itself hardly ever agrees with it."""
    return tiny.bare(tiny.VOCAB, seed=0, spread=4.0), tiny.bare(tiny.VOCAB, seed=5, spread=4.0)


def replay(models: tuple[Model, Model], pattern: str, kind: type[ReplayModel] = ReplayModel) -> ReplayModel:
    return kind.around(models[1], models[0], DraftErrors.parse(pattern))


def request(around: Runtime, number: int) -> Request:
    return tiny.request(around, tiny.prompt(3 + number % 4, seed=number), sample_id=f"s/{number}")


def decode(method: str, around: Runtime, asked: Request, draft_length: int = 4) -> tuple[list[int], list[Round]]:
    """The method's own code; the two sides of an asynchronous one in this process, in a random interleaving."""
    assert around.draft is not None
    if method == "speculative":
        made = tiny.opened(Speculative(draft_length=draft_length), around)
        outcome = made.decode(asked)
        return outcome.output_ids, outcome.rounds
    around.draft.expect(asked)  # as the worker does before it hands the sample on
    mailbox = Mailbox.local()
    target = Session(around.target)
    if method == "pearl":
        verifier: Any = pearl_verify.Verifier(mailbox, GREEDY, RULES["greedy_match"], target)
        drafter: Any = pearl_draft.DraftSide(mailbox, GREEDY, "keyed")
        order: Any = Plan(1, asked, draft_length)
    else:
        verifier = async_verify.Verifier(mailbox, GREEDY, RULES["greedy_match"], 2, "plain", target)
        drafter = async_draft.DraftSide(mailbox, GREEDY, max_lookahead=8)
        order = Order(1, asked)
    drafter.open(around.draft)
    verifier.prepare(order)
    drafter.prepare(order)
    interleave([verifier, drafter], random.Random(asked.sample_id))
    if method == "amusd":
        async_verify.book_draft_report(verifier.books, drafter.report)
    return verifier.books.output, verifier.books.outcome().rounds


def steps(rounds: list[Round]) -> list[Step]:
    return [Step(r.num_drafted, r.num_accepted, r.num_emitted, r.num_draft_forwards) for r in rounds]


def check(
    method: str, models: tuple[Model, Model], draft: ReplayModel, pattern: str, number: int, eos: frozenset[int]
) -> list[Step]:
    """Output and counts of one sample against the pattern; returns the rounds."""
    around = tiny.runtime(models[0], draft, max_new_tokens=LIMIT, eos_ids=eos)
    asked = request(around, number)
    expected = (
        tiny.opened(Autoregressive(), tiny.runtime(models[0], max_new_tokens=LIMIT, eos_ids=eos)).decode(asked).output_ids
    )
    output, rounds = decode(method, around, asked)
    assert output == expected, "lossless whatever is drafted"
    wrong = DraftErrors.parse(pattern).wrong_positions(asked.sample_id, 0, LIMIT)
    length = 1
    for step in steps(rounds):
        assert step.accepted == min(accepted_run(wrong, length, step.drafted), len(output) - length)
        length += step.emitted
    ends = output[-1] in eos
    if method == "speculative":
        assert steps(rounds) == sequential(wrong, len(output), LIMIT, 4)
    if method == "pearl":
        assert steps(rounds) == lockstep(wrong, len(output), LIMIT, 4, ends)
    return steps(rounds)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("method", METHODS)
def test_output_is_the_targets_and_counts_are_the_patterns(models: tuple[Model, Model], method: str, pattern: str) -> None:
    draft = replay(models, pattern)
    for number in range(4):
        check(method, models, draft, pattern, number, frozenset())


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("method", METHODS)
def test_an_eos_inside_the_text(models: tuple[Model, Model], method: str, pattern: str) -> None:
    draft = replay(models, pattern)
    for number in range(3):
        asked = request(tiny.runtime(models[0], max_new_tokens=LIMIT), number)
        text = greedy_text(models[0], asked.prompt_ids, LIMIT)
        eos = frozenset({text[6 + 3 * number]})
        if eos & set(text[:6]):
            continue
        check(method, models, draft, pattern, number, eos)


@pytest.mark.parametrize("method", METHODS)
def test_ends_are_exact(models: tuple[Model, Model], method: str) -> None:
    """never: acceptance 1; always: acceptance 0, one token a round."""
    right = check(method, models, replay(models, "never"), "never", 0, frozenset())
    assert sum(s.accepted for s in right) == sum(s.drafted for s in right) > 0
    wrong = check(method, models, replay(models, "always"), "always", 0, frozenset())
    assert sum(s.accepted for s in wrong) == 0 < sum(s.drafted for s in wrong)
    assert len(wrong) == LIMIT - 1


def test_a_rate_is_met_within_chance(models: tuple[Model, Model]) -> None:
    draft, judged, accepted = replay(models, "iid:0.3"), 0, 0
    for number in range(16):
        for step in check("speculative", models, draft, "iid:0.3", number, frozenset()):
            accepted += step.accepted
            judged += step.accepted + (step.accepted < step.drafted)
    assert judged > 200
    assert abs(accepted / judged - 0.7) < 3.5 * math.sqrt(0.3 * 0.7 / judged)


class OneLate(ReplayModel):
    """The script begins one position too late."""

    def expect(self, asked: Request) -> None:
        super().expect(asked)
        self.script.first += 1


class Forgetful(ReplayModel):
    """The last sample's script stays."""

    def expect(self, asked: Request) -> None:
        if self.script is None:
            super().expect(asked)


class AlwaysRight(ReplayModel):
    """Errors are not made."""

    def expect(self, asked: Request) -> None:
        self.errors = DraftErrors.parse("never")
        super().expect(asked)


@pytest.mark.parametrize("mutant", [OneLate, Forgetful, AlwaysRight])
@pytest.mark.parametrize("method", METHODS)
def test_a_wrong_script_is_caught(models: tuple[Model, Model], method: str, mutant: type[ReplayModel]) -> None:
    draft = replay(models, "every:3", mutant)
    with pytest.raises(AssertionError):
        for number in range(3):
            check(method, models, draft, "every:3", number, frozenset())


def test_forwards_are_the_real_drafts() -> None:
    """As many, over as many rows: what a forward costs is what the pair's draft costs."""
    models = tiny.model("llama", layers=2), tiny.model("qwen3", layers=1, seed=5)
    rows: list[int] = []
    handle = models[1].module.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        around = tiny.runtime(models[0], replay(models, "every:3"), max_new_tokens=LIMIT)
        _, rounds = decode("speculative", around, request(around, 0))
    finally:
        handle.remove()
    assert len(rows) == 1 + sum(r.num_draft_forwards for r in rounds)
    assert rows[0] == len(request(around, 0).prompt_ids) and set(rows[1:]) <= {1, 2}


def test_before_any_prompt_it_is_the_real_draft(models: tuple[Model, Model]) -> None:
    """Probes and calibrations run before."""
    ids = tiny.prompt(6)
    found = []
    for model in (models[1], replay(models, "always")):
        session = Session(model)
        session.start(8)
        found.append(session.feed(ids))
    assert torch.equal(*found)


def test_a_text_is_recorded_once_a_prompt(models: tuple[Model, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    import specbench.pair.scripted as module

    asked: list[tuple[int, ...]] = []

    def recorded(target: Model, prompt_ids: tuple[int, ...], num_tokens: int) -> list[int]:
        asked.append(prompt_ids)
        return greedy_text(target, prompt_ids, num_tokens)

    monkeypatch.setattr(module, "greedy_text", recorded)
    draft = replay(models, "every:3")
    around = tiny.runtime(models[0], draft, max_new_tokens=LIMIT)
    for number in (0, 1, 0):
        draft.expect(request(around, number))
    assert len(asked) == 2


def test_a_draft_with_fewer_rows_says_any_token_of_the_target() -> None:
    target, small = tiny.model("llama", layers=2), tiny.model("llama", layers=1, seed=3, vocab_size=40)
    draft = replay((target, small), "never")
    assert draft.vocab_size == target.vocab_size > small.vocab_size
    numbers = [
        n
        for n in range(20)
        if max(greedy_text(target, request(tiny.runtime(target, max_new_tokens=LIMIT), n).prompt_ids, LIMIT)) >= 40
    ]
    check("speculative", (target, small), draft, "never", numbers[0], frozenset())


# ------------------------------------------------------------------------------------------------ configuration
def configured(**changes: Any) -> PairConfig:
    facts = {"target": "builtin:target", "draft": "builtin:draft", "target_device": "cpu", "draft_device": "cpu"}
    return PairConfig(name="builtin", **{**facts, **changes})


def test_the_specification_carries_the_pattern_and_the_target() -> None:
    spec = specify(configured(draft_errors="every:4"))
    spec = check_pair(spec, load_tokenizer(spec.target))
    assert spec.draft is not None and spec.draft.replay is not None
    assert spec.draft.replay.target.path == spec.target.path and spec.draft.replay.vocab_size == spec.vocab_size
    assert pair_facts(spec)["draft"]["errors"] == "every:4"
    assert isinstance(load_model(spec.draft, spec.draft_vocab_size), ReplayModel)
    assert "errors" not in pair_facts(specify(configured()))["draft"]


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["pair.draft_errors=sometimes"], "pair.draft_errors"),
        (["pair.draft_errors=iid:2"], "pair.draft_errors"),
        (["pair.draft_errors=never", "decoding.temperature=0.7"], "pair.draft_errors"),
    ],
)
def test_wrong_options_are_refused(overrides: list[str], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    assert caught.value.key == key


def test_errors_need_a_draft_for_its_time() -> None:
    with pytest.raises(ConfigError, match="name one"):
        specify(configured(draft=None, draft_errors="never"))


def test_every_pattern_can_be_typed() -> None:
    """By Hydra's grammar, as it stands on a command line."""
    typed = OverridesParser.create().parse_overrides([f"pair.draft_errors={pattern}" for pattern in PATTERNS])
    assert tuple(override.value() for override in typed) == PATTERNS
    assert compose([f"pair.draft_errors={PATTERNS[3]}"]).pair.draft_errors == PATTERNS[3]


@pytest.mark.parametrize("method", METHODS)
def test_a_whole_run(tmp_path: Any, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a worker of its own where the method has one."""
    fork_workers(monkeypatch)
    options = ["method.draft_length=4"] if method == "pearl" else []
    config = compose(
        [*BUILTIN, f"method={method}", *options, "pair.draft_errors=every:3", "data.source=standin", "data.limit=2",
         "measure.warmup=1", "decoding.max_new_tokens=20", "measure.repeats=1", "measure.power=off", "engine.threads=1",
         f"runs_dir={tmp_path}", "device_lock=off", "pair.target_device=cpu", "pair.draft_device=cpu"]
    )  # fmt: skip
    summary = run(config)
    assert summary["lossless"]["verdict"] == "identical"
    assert any("acceptance is set" in warning for warning in summary["warnings"])
    folder = summary["run_folder"]
    finished = {r.key: r for r in store.read_samples(folder) if r.arm == "method"}
    pattern = DraftErrors.parse("every:3")
    num_drafted = 0
    for key, own in store.read_rounds(folder).items():
        if key in finished:
            length, wrong = 1, pattern.wrong_positions(key[0], key[1], 20)
            for r in store.rounds_from_columns(own):
                assert r.num_accepted == min(accepted_run(wrong, length, r.num_drafted), len(finished[key].output_ids) - length)
                length, num_drafted = length + r.num_emitted, num_drafted + r.num_drafted
    assert num_drafted > 0
