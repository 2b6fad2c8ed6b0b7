"""How much is drafted: stops alone, in every method that takes one, and by name or node; and trees on a draft model.

Whatever a stop says, the output is the target's own. A stop of chance says anything at all.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import test_amusd
import test_pearl
import tiny
import torch
from fake_sessions import EOS_IDS
from interleaving import Deadlock

from specbench.check import GREEDY, PASS, SAMPLED, Bench
from specbench.check.identity import greedy_identity, sampled_identity
from specbench.check.law import sampled_law
from specbench.check.state import caches
from specbench.check.tiny import PROMPTS, make_tiny_pair
from specbench.check.tiny_heads import with_tiny_heads
from specbench.config.options import ConfigError
from specbench.config.specs import PairSpec
from specbench.engine.model import Model
from specbench.engine.request import NOBODYS, Request
from specbench.engine.sampling import SamplingLaw
from specbench.method import Method, ModelDraft, Stop, create_method
from specbench.methods.chains.speculative import Speculative
from specbench.parts.schedules.free_running.draft import DraftSide as FreeDraft
from specbench.parts.schedules.lockstep.draft import DraftSide as LockstepDraft
from specbench.parts.stops import STOPS, make_stop
from specbench.parts.stops.confidence import Confidence
from specbench.parts.stops.heuristic import Heuristic

HEADS = Path(__file__).parent / "golden"
SPECULATIVE = "specbench.methods.chains.speculative.Speculative"


class Never(Stop):
    """Not one token more."""

    def goes_on(self, logits: torch.Tensor, token: int) -> bool:
        return False


class Chance(Stop):
    """Says anything: of lengths, of going on."""

    def __init__(self, draft_length: int | None = None, seed: int = 0):
        super().__init__(draft_length)
        self.random = random.Random(seed)

    def budget(self, room: int) -> int:
        return self.random.randrange(room + 2)

    def goes_on(self, logits: torch.Tensor, token: int) -> bool:
        return self.random.random() < 0.7


# ------------------------------------------------------------------------------------------------------------------- alone
def test_a_fixed_length_is_kept_to_and_the_room_too() -> None:
    assert [Stop(4).budget(room) for room in (0, 3, 4, 9)] == [0, 3, 4, 4] and Stop().budget(9) == 9
    assert Stop(4).goes_on(torch.zeros(1, 3), 0)


def test_confidence_looks_at_what_the_draft_gave_its_own_token() -> None:
    stop = Confidence(threshold=0.5)
    logits = torch.tensor([[0.0, 2.0, 0.0, 0.0]])  # 0.71 for token 1
    assert stop.goes_on(logits, 1) and not stop.goes_on(logits, 0)
    assert not Confidence(threshold=0.72).goes_on(logits, 1) and Confidence(threshold=0.71).goes_on(logits, 1)
    assert Confidence(threshold=0.0).goes_on(logits, 0), "0 never stops"
    assert not Confidence(threshold=1.0).goes_on(logits, 1)


def test_the_heuristic_adds_two_and_takes_one() -> None:
    stop = Heuristic(draft_length=3)
    stop.begin(NOBODYS)
    lengths = [stop.budget(99)]
    for drafted, accepted in ((3, 3), (5, 5), (7, 6), (6, 0), (5, 5), (0, 0)):
        stop.learn(drafted, accepted)
        lengths.append(stop.budget(99))
    assert lengths == [3, 5, 7, 6, 5, 7, 7] and stop.budget(2) == 2
    for _ in range(20):
        stop.learn(5, 0)
    assert stop.budget(99) == 1, "never nothing"
    stop.begin(NOBODYS)
    assert stop.budget(99) == 3, "every sample begins anew"


# ------------------------------------------------------------------------------------------------- names, nodes, wrong ones
def created(stop: Any, **options: Any) -> Method:
    return create_method({"_target_": SPECULATIVE, "draft_length": 5, "stop": stop, **options}, ["test_stops"])


def test_stops_by_name_and_by_node() -> None:
    for name, kind in STOPS.items():
        made = created(name).stop
        assert type(made) is kind and made.draft_length == 5, "the method's length where it names none"
    assert type(created(None).stop) is Stop
    node = {"_target_": "specbench.parts.stops.confidence.Confidence", "threshold": 0.9, "draft_length": 7}
    made = created(node).stop
    assert isinstance(made, Confidence) and (made.threshold, made.draft_length) == (0.9, 7)
    assert isinstance(created({"_target_": "test_stops.Never"}).stop, Never), "one of somebody's own"
    assert make_stop(made, 3) is made


@pytest.mark.parametrize(
    ("stop", "key", "words"),
    [
        ("confident", "method.stop", "possible: fixed, confidence, entropy, heuristic, hf, goodput, memory, specdec_pp"),
        (3, "method.stop", "possible: fixed"),
        ({"_target_": "specbench.parts.shapes.chain.Chain"}, "method.stop", "a node that names a Stop"),
        ({"_target_": "specbench.parts.stops.confidence.Confident"}, "method.stop._target_", "Confidence"),
        ({"_target_": "specbench.parts.stops.confidence.Confidence", "threshold": 1.5}, "method.stop.threshold", "probability"),
        ({"_target_": "specbench.parts.stops.confidence.Confidence", "threshhold": 0.5}, "method.stop.threshhold", "threshold"),
        (
            {"_target_": "specbench.parts.stops.heuristic.Heuristic", "draft_length": 0},
            "method.stop.draft_length",
            "from 1 to 4,096",
        ),
        ({"_target_": "os.system"}, "method.stop._target_", "points outside"),
        ({"_target_": "specbench.config.paths.Path"}, "method.stop._target_", "is no class of its own"),
    ],
)
def test_wrong_stops_are_named(stop: Any, key: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        created(stop)
    assert caught.value.key == key and words in str(caught.value)


# ---------------------------------------------------------------------------------------- free-running and lockstep schedules
KINDS: dict[str, Callable[[int], Stop]] = {
    "never": lambda seed: Never(8),
    "one": lambda seed: Stop(1),
    "confidence": lambda seed: Confidence(draft_length=6, threshold=0.6),
    "heuristic": lambda seed: Heuristic(draft_length=2),
    "chance": lambda seed: Chance(8, seed),
}


def free_running(case: test_amusd.Case, stop: Stop, waited_for: int | None = None) -> test_amusd.Play:
    waits = case.draft_length if waited_for is None else waited_for
    return test_amusd.Play(case, drafter=lambda *given: test_amusd.WatchedDrafter(*given, stop=stop, waited_for=waits))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_a_free_running_draft_that_is_held_back_changes_no_output(kind: str) -> None:
    for seed in range(150):
        case = test_amusd.Case.drawn(seed)
        free_running(case, KINDS[kind](seed)).sample(1, case.request())


def test_a_stop_that_never_goes_on_keeps_a_free_running_draft_at_what_is_waited_for() -> None:
    for waited_for in (0, 1, 3):
        case = replace(test_amusd.Case.drawn(0), max_new_tokens=33, draft_length=waited_for, max_lookahead=8, eos_rate=0.0)
        slow = replace(case.timing, target_weight=0.1)  # a slow verifier: the draft has all the time
        play = free_running(replace(case, timing=slow), Never(8))
        play.sample(1, case.request())
        rounds = play.verifier.books.outcome().rounds
        assert max(r.num_drafted for r in rounds) == max(1, waited_for)


def test_a_draft_that_stops_below_what_is_waited_for_is_a_deadlock() -> None:
    """The twin: the same stops, and nobody told the draft how many the target waits for."""
    case = replace(test_amusd.Case.drawn(0), max_new_tokens=33, draft_length=3, max_lookahead=8, eos_rate=0.0)
    with pytest.raises(Deadlock):
        free_running(case, Never(8), waited_for=0).sample(1, case.request())


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_that_end_early_change_no_output(kind: str) -> None:
    for seed in range(150):
        case = test_pearl.Case.drawn(seed)
        stop = KINDS[kind](seed)
        play = test_pearl.Play(case, drafter=lambda *given, stop=stop: LockstepDraft(*given, stop=stop))  # type: ignore[arg-type, misc]
        play.sample(1, case.request())
        if kind in ("never", "one"):
            assert all(r.num_draft_forwards <= 1 + (not case.pre_verify) for r in play.verifier.books.outcome().rounds)


class Empty(LockstepDraft):
    """Takes a stop at its word when it wants nothing at all."""

    def _look(self) -> Any:
        progress = super()._look()
        if self._next == self._draft and self.stop_policy.budget(9) == 0:
            self._next = self._look
        return progress


def test_a_block_of_nothing_is_a_deadlock() -> None:
    case = replace(test_pearl.Case.drawn(0), max_new_tokens=17, eos_rate=0.0)
    nothing = Stop()
    nothing.draft_length = 0
    with pytest.raises(Deadlock):
        test_pearl.Play(case, drafter=lambda *given: Empty(*given, stop=nothing)).sample(1, case.request())  # type: ignore[arg-type]


def test_stops_forget_the_sample_before_in_a_worker_too() -> None:
    """A heuristic that has grown begins the next sample at its own length."""
    stop = Heuristic(draft_length=1)
    case = replace(
        test_amusd.Case.drawn(0), max_new_tokens=33, draft_length=0, max_lookahead=16, eos_rate=0.0, agreement="always"
    )
    play = free_running(case, stop)
    request = replace(case.request(), eos_ids=EOS_IDS)
    lengths = []
    begin = stop.begin

    def beginning(request: Request) -> None:
        lengths.append(stop.length)
        begin(request)
        lengths.append(stop.length)

    stop.begin = beginning  # type: ignore[method-assign]
    play.sample(1, request)
    play.sample(2, request)
    assert lengths[0] == 0 and lengths[2] > 1 and lengths[1] == lengths[3] == 1
    assert isinstance(play.drafter, FreeDraft)


# ------------------------------------------------------------------------------------------------------------ sequential ones
@pytest.fixture(scope="module")
def bare() -> tuple[Any, Any]:
    return tiny.bare_pair(tiny.VOCAB)


def rounds_of(models: tuple[Any, Any], method: Method, law: SamplingLaw | None = None, tokens: int = 40) -> list[Any]:
    around = tiny.runtime(*models, law, tokens)
    outcomes = [tiny.decode(method, around, tiny.prompt(4 + seed, seed), sample_id=str(seed)) for seed in range(3)]
    plain = [tiny.decode(Method(), around, tiny.prompt(4 + seed, seed), sample_id=str(seed)) for seed in range(3)]
    assert [o.output_ids for o in outcomes] == [o.output_ids for o in plain]
    return [r for o in outcomes for r in o.rounds]


@pytest.mark.parametrize("law", [SamplingLaw(), SamplingLaw(0.8)], ids=["greedy", "sampled"])
@pytest.mark.parametrize(
    ("kind", "shape"), [*((kind, "chain") for kind in KINDS), ("one", "dynamic"), ("heuristic", "dynamic")]
)
def test_speculative_output_is_the_targets_own(bare: Any, kind: str, shape: str, law: SamplingLaw) -> None:
    rounds = rounds_of(bare, Speculative(draft_length=4, stop=KINDS[kind](0), shape=shape), law)
    depths = {r.draft_depth for r in rounds}
    if kind in ("one", "never"):
        assert depths == {0, 1}
    if kind in ("confidence", "heuristic") and shape == "chain":
        assert len(depths - {0, 1}) > 1, "it stops here and there"


@pytest.mark.parametrize("kind", ["never", "confidence", "chance"])
def test_a_stop_that_a_tree_would_never_ask_is_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"method\.stop=.*behind every token"):
        Speculative(draft_length=4, stop=KINDS[kind](0), shape="dynamic")
    for heads in ("eagle.Eagle", "medusa.Medusa", "hydra.Hydra"):
        with pytest.raises(ConfigError, match=r"method\.stop=.*behind every token"):
            create_method({"_target_": f"specbench.methods.heads.{heads}", "stop": "confidence"})


def test_a_stop_that_never_goes_on_drafts_one(bare: Any) -> None:
    rounds = rounds_of(bare, Speculative(draft_length=6, stop=Never(6)))
    assert {r.num_drafted for r in rounds} == {0, 1} and all(r.num_draft_forwards == r.num_drafted for r in rounds)
    assert max(r.num_drafted for r in rounds_of(bare, Speculative(draft_length=6))) == 6, "the twin"


def test_a_stop_hears_of_every_round_in_depth(bare: Any) -> None:
    heard: list[tuple[int, int]] = []

    class Listening(Stop):
        def learn(self, num_drafted: int, num_accepted: int) -> None:
            heard.append((num_drafted, num_accepted))

    rounds = rounds_of(bare, Speculative(draft_length=4, stop=Listening(4), shape="dynamic"))
    assert heard == [(r.draft_depth, r.num_accepted) for r in rounds]


@pytest.mark.parametrize("shape", ["chain", "dynamic"])
def test_a_heuristic_may_outgrow_its_first_length(shape: str) -> None:
    """A draft that is always right and sure of it: blocks grow until the sample's end is near, and the caches have the room."""
    target = Model.wrap(tiny.Bare(tiny.VOCAB, seed=3, spread=20.0, num_positions=96))
    method = Speculative(draft_length=1, stop="heuristic", shape=shape, num_nodes=24, top_k=6)
    assert max(r.draft_depth for r in rounds_of((target, target), method, None, 60)) > 8


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> PairSpec:
    folder = tmp_path_factory.mktemp("pair")
    for heads in HEADS.glob("heads_*"):
        (folder / heads.name).symlink_to(heads)
    return make_tiny_pair(folder)


@pytest.fixture
def bench_of(pair: PairSpec) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def bench(target: str, **options: Any) -> Bench:
        node = with_tiny_heads({"_target_": target, **options}, pair, Path(pair.target.path).parent, ["test_stops"])
        made.append(Bench(node, pair, PROMPTS, ["test_stops"]))
        return made[-1]

    yield bench
    for one in made:
        one.close()


@pytest.mark.parametrize("stop", ["heuristic", {"_target_": "specbench.method.Stop", "draft_length": 1}])
@pytest.mark.parametrize("method", ["eagle.Eagle", "medusa.Medusa"])
def test_heads_under_a_stop_give_the_targets_own_output(bench_of: Any, method: str, stop: Any) -> None:
    if stop == "heuristic":
        stop = {"_target_": "specbench.parts.stops.heuristic.Heuristic", "draft_length": 1}
    bench = bench_of(f"specbench.methods.heads.{method}", num_nodes=6, stop=stop)
    for check in (greedy_identity, sampled_identity):
        assert check(bench).status == PASS, check(bench).detail
    depths = {r.draft_depth for prompt in range(3) for r in bench.decode(GREEDY, bench.request(prompt)).rounds}
    assert depths == {0, 1} if stop.get("draft_length") == 1 and "Heur" not in stop["_target_"] else len(depths) > 2


# -------------------------------------------------------------------------------------------------- trees on a draft model
@pytest.mark.parametrize("options", [{}, {"num_nodes": 5, "top_k": 2}, {"draft_length": 1}, {"top_k": 1}], ids=str)
def test_a_tree_on_a_draft_model_gives_the_targets_own_output_and_leaves_no_trace(
    bench_of: Any, options: dict[str, Any]
) -> None:
    bench = bench_of(SPECULATIVE, **{"shape": "dynamic", "draft_length": 4, **options})
    for check in (greedy_identity, sampled_identity, caches):
        assert check(bench).status == PASS, check(bench).detail
    assert "draft" in caches(bench).detail


def test_under_delta_it_has_the_targets_law(bench_of: Any) -> None:
    bench = bench_of(SPECULATIVE, shape="dynamic", draft_length=3, num_nodes=6, rule="delta")
    for check in (greedy_identity, lambda bench: sampled_law(bench, 200)):
        assert check(bench).status == PASS, check(bench).detail
    assert bench.method(SAMPLED).claim(SAMPLED) == "sampling-exact"


class ForgetsToKeep(ModelDraft):
    """Leaves the branches' rows where they were grown: what is kept is whatever came first."""

    def _path(self, tokens: Any) -> list[int]:
        return list(range(len(super()._path(tokens))))


class WrongBranches(Speculative):
    def __init__(self) -> None:
        super().__init__(draft_length=4, shape="dynamic")
        self.drafter = ForgetsToKeep(self.drafter.shape, self.stop)  # type: ignore[attr-defined]


def test_a_wrong_branch_in_the_drafts_cache_is_found(bench_of: Any) -> None:
    bench = bench_of("test_stops.WrongBranches")
    assert greedy_identity(bench).status == PASS, "the output is right all the same"
    assert caches(bench).status != PASS and "draft" in caches(bench).detail


def test_a_tree_emits_more_than_a_chain_of_its_depth(pair: PairSpec, bench_of: Any) -> None:
    """Greedy and, with the target's noise, sampled."""
    emitted = {}
    for shape in ("chain", "dynamic"):
        bench = bench_of(SPECULATIVE, shape=shape, draft_length=4)
        for law in (GREEDY, SAMPLED):
            outcomes = [bench.decode(law, bench.request(prompt, seed)) for prompt in range(3) for seed in range(2)]
            rounds = [r for o in outcomes for r in o.rounds]
            emitted[shape, law] = sum(r.num_emitted for r in rounds) / len(rounds)
            assert max(r.draft_depth for r in rounds) == 4
    for law in (GREEDY, SAMPLED):
        assert emitted["dynamic", law] > 1.1 * emitted["chain", law], emitted


def test_drafts_come_from_the_branch_that_was_kept(bare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it keeps of a tree the draft is not fed again."""
    around = tiny.runtime(*bare, None, 40)
    method = tiny.opened(Speculative(draft_length=4, shape="dynamic"), around)
    session: Any = method.sessions()["draft"]
    fed, feed = [], session.feed
    monkeypatch.setattr(session, "feed", lambda ids, **options: (fed.append(len(ids)), feed(ids, **options))[1])
    outcome = method.decode(tiny.request(around, tiny.prompt(5)))
    accepted = sum(r.num_accepted for r in outcome.rounds)
    assert accepted > 5
    assert sum(fed[1:]) < len(outcome.output_ids) - accepted / 2, "accepted nodes were fed again"


def test_a_tree_where_only_chains_are_taken_is_refused(bare: Any) -> None:
    chains = replace(bare[0], tree_refusal="it says so")
    for models in ((chains, bare[1]), (bare[0], replace(bare[1], tree_refusal="it says so"))):
        with pytest.raises(ConfigError, match="takes chains only") as refused:
            Speculative(shape="dynamic").open(tiny.runtime(*models))
        assert refused.value.key == "method.shape"
    Speculative(shape="dynamic", top_k=1).open(tiny.runtime(chains, bare[1]))
