"""A chain of drafts under AMUSD's seeded scheduler: interleavings of three and four stages, and mutants that must fail."""

from __future__ import annotations

import collections
import json
import os
import random
import signal
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import golden_rounds
import pytest
from fake_sessions import FakeSession, agreement, autoregressive, imitation
from interleaving import Deadlock, all_met, caught, counting_mailbox, interleave, played
from test_amusd import Case

from specbench.check import GREEDY, SAMPLED, Bench
from specbench.check.tiny import make_tiny_pair
from specbench.config.compose import compose
from specbench.config.options import ConfigError
from specbench.config.schema import PairConfig
from specbench.engine.request import Request
from specbench.methods.overlap.pipespec import PipeSpec
from specbench.pair.load import check_pair, load_tokenizer
from specbench.pair.spec import specify
from specbench.pair.stages import stage_loader
from specbench.parts.rules.rule import RULES
from specbench.parts.schedules.free_running.draft import DraftSide
from specbench.parts.schedules.free_running.pipeline import count_stages
from specbench.parts.schedules.free_running.relay import Relay
from specbench.parts.schedules.free_running.verify import Verifier, book_draft_report
from specbench.processes.mailbox import Message
from specbench.processes.steps import Order, Progress
from specbench.processes.worker import WorkerError

NUM_SEEDS, ALL_SEEDS = 60, 4000
DEADLOCK = "target has .* draft has"


class WatchedRelay(Relay):
    """Notes the situations that a test must have met."""

    seen: collections.Counter[str]

    def _discard_from(self, index: int) -> None:
        if index < len(self.tokens):
            self.seen["rollback in the middle"] += 1
            self.seen["takes back what it told"] += index < self.told
        super()._discard_from(index)

    def _take(self, message: Message) -> None:
        self.seen["hears of a stage that took back"] += self.in_chain and message.length < self.verified
        super()._take(message)

    def _draft(self) -> Progress:
        before = self.report.num_accepted, self.report.num_verified
        progress = super()._draft()
        accepted, verified = self.report.num_accepted - before[0], self.report.num_verified - before[1]
        self.seen["middle rejects"] += accepted < verified
        self.seen["middle accepts all"] += accepted == verified > 0
        self.seen["middle says it alone"] += not verified
        return progress


class Chain:
    """Verifier, relays, draft; the last differ from the language in different places. Mutants may replace the classes."""

    def __init__(self, case: Case, num_relays: int = 1, relay: type[Relay] = WatchedRelay, bottom: type[DraftSide] = DraftSide):
        self.case, self.seen = case, collections.Counter[str]()
        language, law = case.language(), case.law()
        rule = RULES["greedy_match" if law.greedy else "sample_match"]
        waiting = (case.max_lookahead, case.draft_length)
        self.boxes = [counting_mailbox() for _ in range(1 + num_relays)]
        self.verifier = Verifier(self.boxes[0], law, rule, case.draft_length, case.stale, FakeSession(language.logits))
        self.relays = [relay(*self.boxes[n : n + 2], law, rule, *waiting, case.stale, False, n > 0) for n in range(num_relays)]
        for n, one in enumerate(self.relays):
            one.session = FakeSession(imitation(language, agreement("random", 0.85, case.seed + n + 1, 0)))
            one.seen = self.seen  # type: ignore[attr-defined]
        self.drafter = bottom(self.boxes[-1], law, case.max_lookahead, False, None, case.draft_length, True)
        self.drafter.session = FakeSession(imitation(language, agreement(case.agreement, case.rate, case.seed, 0)))
        self.sides: list[Any] = [self.verifier, *self.relays, self.drafter]

    def sample(self, number: int, request: Request) -> None:
        """Schedule one sample to its end and check it."""
        for side in self.sides:
            side.prepare(Order(number, request))
        timing, note = self.case.timing, self.seen.update
        rng = random.Random(self.case.seed * 31 + number)
        interleave(self.sides, rng, timing, self, self.state, lambda what: note([what]), self.check_step)  # type: ignore[arg-type]
        self.check(request)

    @property
    def committed(self) -> Any:
        """Of all mailboxes, for those who count."""
        return types.SimpleNamespace(operations=sum(box.committed.operations for box in self.boxes))  # type: ignore[attr-defined]

    @property
    def drafts(self) -> Any:
        return types.SimpleNamespace(operations=sum(box.drafts.operations for box in self.boxes))  # type: ignore[attr-defined]

    def check_step(self) -> None:
        for above, below in zip(self.relays, [*self.relays[1:], self.drafter], strict=True):
            assert below.epoch <= above.told_epoch, "an epoch that nobody gave"

    def state(self) -> str:
        v = self.verifier
        stages = ", ".join(f"draft has {s.tokens}, verified {s.verified}, published {s.published}" for s in self.sides[1:])
        return f"{self.case}: target has {v.books.output}, epoch {v.epoch}, agreed {v.agreed}; {stages}"

    def check(self, request: Request) -> None:
        expected, finish = autoregressive(self.case.language().logits, self.case.law(), request)
        books, reports = self.verifier.books, [stage.report for stage in self.sides[1:]]
        assert (books.output, books.finish) == (expected, finish), f"wrong output: {self.state()}"
        book_draft_report(books, reports[0])
        rounds = books.outcome().rounds
        assert sum(r.num_discarded for r in rounds) == reports[0].num_discarded
        assert sum(r.num_draft_forwards for r in rounds) == reports[0].num_forwards
        assert all(r.num_discarded >= r.num_drafted - r.num_accepted for r in rounds), "rejected drafts uncounted"
        for stage in self.sides[1:]:
            assert stage.tokens == expected, f"a stage ends with other tokens: {self.state()}"
            fed = stage.session.fed
            assert fed == [*request.prompt_ids, *expected][: len(fed)], "a cache holds what was rejected"
            assert sum(span is not None for span in stage.forwards) <= len(expected) - 1
        counted = count_stages(reports)
        bottom = self.drafter.report
        assert counted["stage_0_discarded"] == bottom.num_discarded >= 0
        assert bottom.num_forwards - bottom.num_discarded == sum(span is not None for span in self.drafter.forwards)
        for relay in self.relays:
            report = relay.report
            assert 0 <= report.num_accepted <= report.num_verified
            assert report.num_forwards <= report.num_discarded + len(expected) - 1, "a forward that left no token"
        self.seen["rejected by a stage in the middle"] += bottom.num_discarded > sum(
            r.report.num_discarded for r in self.relays
        )
        self.seen["stale round"] += any(r.stale for r in rounds)
        self.seen[f"finish {finish}"] += 1
        self.seen["sampled"] += self.case.temperature > 0


SITUATIONS = (
    "rollback in the middle",
    "takes back what it told",
    "hears of a stage that took back",
    "middle rejects",
    "middle accepts all",
    "middle says it alone",
    "rejected by a stage in the middle",
    "stale round",
    "finish eos",
    "finish length",
    "sampled",
    "spurious wake-up",
    "time-out without news",
)


@pytest.mark.parametrize("num_seeds", [NUM_SEEDS, pytest.param(ALL_SEEDS, marks=pytest.mark.slow)])
def test_every_interleaving_gives_the_targets_own_output(num_seeds: int) -> None:
    seen = played(
        lambda seed: Chain(Case.drawn(seed), num_relays=1 + seed % 2), num_seeds, samples=(1, 2)
    )  # and the next sample on the same mailboxes
    all_met(seen, SITUATIONS, least=5)


# ------------------------------------------------------------------------------------------------ mutants
class KeepsItToItself(WatchedRelay):
    """Takes its words back without telling the stage below."""

    def _discard_from(self, index: int) -> None:
        told = self.told
        super()._discard_from(index)
        self.told = told


class EndsSilently(WatchedRelay):
    """Does not pass the end on."""

    def _tell(self) -> Progress:
        return Progress.FINISHED if self.finished else super()._tell()


class AcknowledgesUnread(WatchedRelay):
    """Takes what came while it looked below for read: a lost wake-up."""

    def _look_below(self) -> Progress:
        progress = super()._look_below()
        self.seen_version = self.inbox.version()
        return progress


class KeepsRejectedRows(WatchedRelay):
    """Leaves rejected drafts of the stage below in its cache."""

    def _draft(self) -> Progress:
        rollback, self.session.rollback = self.session.rollback, lambda length: None
        progress = super()._draft()
        self.session.rollback = rollback
        return progress


class ForgetsDiscards(WatchedRelay):
    """Throws drafts away without writing it down."""

    def _discard_from(self, index: int) -> None:
        before = len(self.report.discards)
        super()._discard_from(index)
        del self.report.discards[before:]


class HearsOnlyWhatIsNew(DraftSide):
    """Reads as if the stage above never took anything back."""

    def _take_news(self) -> None:
        self.in_chain = False
        super()._take_news()


@pytest.mark.parametrize(
    ("mutant", "error"),
    [
        (KeepsItToItself, f"keeps .* of .* tokens|other tokens|{DEADLOCK}"),
        (EndsSilently, DEADLOCK),
        (AcknowledgesUnread, DEADLOCK),
        (KeepsRejectedRows, "cache holds what was rejected|one position per row"),
        (ForgetsDiscards, "rejected drafts uncounted"),
        (HearsOnlyWhatIsNew, f"other tokens|nothing to feed|{DEADLOCK}"),
    ],
)
def test_mutants_are_caught(mutant: Any, error: str) -> None:
    kinds = {"relay" if issubclass(mutant, Relay) else "bottom": mutant}
    found = caught(lambda seed: Chain(Case.drawn(seed), 1 + seed % 2, **kinds), ALL_SEEDS, error)
    assert isinstance(found, Deadlock) or error != DEADLOCK


def test_a_stopped_sample_stops_every_stage_and_the_next_one_is_right() -> None:
    for seed in range(30):
        case = Case.drawn(seed)
        play = Chain(case, 1 + seed % 2)
        rng = random.Random(seed)
        for side in play.sides:
            side.prepare(Order(1, case.request()))
        for _ in range(rng.randrange(1, 60)):
            if rng.choice(play.sides).step() is Progress.FINISHED:
                break
        play.verifier.stop()
        left = list(play.sides[1:])
        for _ in range(200):
            left = [side for side in left if side.step() is not Progress.FINISHED]
        assert not left, "a stage goes on"
        assert all(side.tokens == play.verifier.books.output for side in play.sides[1:])
        play.sample(2, case.request())


# ------------------------------------------------------------------------------------------------ the method
def test_one_stage_is_amusd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rounds under the same seeded scheduler; a second stage makes others."""
    golden_rounds.install(monkeypatch)
    pair = make_tiny_pair(tmp_path)
    recorded = json.loads(golden_rounds.GOLDEN.read_text())
    assert golden_rounds.rounds_of(("pipespec", "method.stages=[draft]"), pair) == recorded["amusd"]
    other = golden_rounds.rounds_of(("pipespec",), pair)
    assert other != recorded["amusd"]
    assert {key: one["output_ids"] for key, one in other.items()} == {
        key: one["output_ids"] for key, one in recorded["amusd"].items()
    }


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"stages": []}, "method.stages"),
        ({"stages": "draft"}, "method.stages"),
        ({"stages": [3]}, "method.stages"),
        ({"stages": ["draft", "middle", "draft"]}, "method.stages"),
        ({"draft_length": -1}, "method.draft_length"),
        ({"draft_length": 5, "max_lookahead": 4}, "method.max_lookahead"),
        ({"stale": "fresh"}, "method.stale"),
        ({"draft_cores": 0}, "method.draft_cores"),
        ({"rule": "ratio"}, "method.rule"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        PipeSpec(**options)
    assert caught.value.key == key


def test_stages_by_name(tmp_path: Path) -> None:
    """What each name means, and what is refused before a process starts."""
    tiny = make_tiny_pair(tmp_path)
    stage = stage_loader(tiny)
    assert stage is not None and stage_loader(replace(tiny, draft=None)) is None
    name, load = stage("middle")
    assert name == "tiny target, first 1 of 2 layers"
    model, draft = load(), stage("draft")[1]()
    assert model.num_cache_layers == 1 and model.is_draft
    layers = [m.module.state_dict()["model.layers.0.mlp.up_proj.weight"] for m in (model, draft)]
    assert (layers[0] == layers[1]).all()  # the tiny draft is the target without its second layer
    for wrong in ("target:3", "target:0", "target:x", str(tmp_path / "nothing")):
        with pytest.raises(ConfigError) as caught:
            stage(wrong)
        assert caught.value.key == "method.stages"
    builtin = specify(PairConfig(name="builtin", target="builtin:target", draft="builtin:draft"))
    stage = stage_loader(check_pair(builtin, load_tokenizer(builtin.target)))
    assert stage is not None and stage("middle")[0] == "builtin:draft_large"
    with pytest.raises(ConfigError, match="possible: builtin:"):
        stage("builtin:none_such")


@pytest.mark.slow
def test_three_processes_of_three_models() -> None:
    """The built-in pair's three drafts in processes of their own; one that dies is told by its name."""
    pair = specify(PairConfig(name="builtin", target="builtin:target", draft="builtin:draft"))
    tokenizer = load_tokenizer(pair.target)
    node = compose(["method=pipespec", "method.stages=[builtin:draft_small,draft,builtin:draft_large]"]).method
    prompts = [tuple(tokenizer("def add(a, b):\n    ").input_ids)]
    bench = Bench(node, check_pair(pair, tokenizer), prompts, timeout_seconds=20.0)
    try:
        for law in (GREEDY, SAMPLED):
            outcome = bench.decode(law, bench.request(0))
            assert outcome.output_ids == bench.expected(law, bench.request(0)).output_ids
            assert {name.split("_")[1] for name in outcome.counted} == {"0", "1", "2"}
            assert outcome.counted["stage_0_forwards"] > 0 and outcome.counted["stage_2_verified"] > 0
        method = bench.method(GREEDY)
        assert len(method.pids()) == 3 and method.facts()["num_processes"] == 4
        os.kill(method.pids()[-1], signal.SIGKILL)
        with pytest.raises(WorkerError, match="stage 0"):
            bench.decode(GREEDY, bench.request(0))
    finally:
        bench.close()
