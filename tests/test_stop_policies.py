"""Stops that learn, measure or look: what they decide, that no law is moved by it, and where they are refused."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from law_tools import EXACT, PAIRS, WRONG, round_error
from miniature import Miniature, settings_for
from test_trees import Coins, Toy, drawn_by

from specbench.check import GREEDY, PASS, Bench
from specbench.check.identity import greedy_identity, sampled_identity
from specbench.check.tiny import PROMPTS
from specbench.config.options import ConfigError
from specbench.config.schema import PairConfig
from specbench.config.specs import ModelSpec, PairSpec
from specbench.engine.masks import build
from specbench.engine.request import NOBODYS
from specbench.engine.sampling import SamplingLaw
from specbench.engine.tree import DraftTree
from specbench.measure.theory.formulas import emitted_sequential
from specbench.method import Chain, Method, Stop, create_method
from specbench.methods.chains.speculative import Speculative
from specbench.methods.layers.layerskip import LayerSkip
from specbench.methods.layers.swift import Swift
from specbench.methods.text.prompt_lookup import PromptLookup
from specbench.methods.text.sam import Sam
from specbench.parts.heads.base import TargetParts
from specbench.parts.rules.chain import ratio
from specbench.parts.shapes import cost
from specbench.parts.stops import goodput
from specbench.parts.stops.confidence import Confidence
from specbench.parts.stops.entropy import Entropy, entropy_nats
from specbench.parts.stops.goodput import Goodput, best_length
from specbench.parts.stops.memory import Memory
from specbench.parts.stops.specdec_pp import AcceptanceHead, SpecDecPlusPlus
from specbench.run import passes
from specbench.train.__main__ import run
from specbench.train.acceptance import MixedBatches, acceptance_loss, calibrate_head, greedy_texts, mixed, proposals
from specbench.train.distill import final_hidden
from specbench.train.settings import PartSettings

LAWS = [SamplingLaw(), SamplingLaw(0.8)]


@pytest.fixture(scope="module")
def bare() -> tuple[Any, Any]:
    return tiny.bare_pair(tiny.VOCAB)


def rounds_of(models: tuple[Any, Any], method: Method, law: SamplingLaw | None = None, tokens: int = 40) -> list[Any]:
    """Of three prompts in one pass, which are answered as the target does alone."""
    around = tiny.runtime(*models, law, tokens)
    asked = [tiny.request(around, tiny.prompt(4 + seed, seed), sample_id=str(seed)) for seed in range(3)]
    plain, method = tiny.opened(Method(), around), tiny.opened(method, around)
    method.reset()
    outcomes = [method.decode(request) for request in asked]
    assert [o.output_ids for o in outcomes] == [plain.decode(request).output_ids for request in asked]
    return [r for o in outcomes for r in o.rounds]


# ----------------------------------------------------------------------------------------------------------------- entropy
def test_entropy_is_that_of_the_drafts_law() -> None:
    assert entropy_nats(torch.zeros(1, 8)) == pytest.approx(math.log(8))
    assert entropy_nats(torch.tensor([[0.0, 0.0, -math.inf]])) == pytest.approx(math.log(2)), "what it has not, counts nothing"


def test_both_forms_are_the_papers_bounds() -> None:
    logits = torch.zeros(1, 8)
    bound = 1 - math.sqrt(0.2 * math.log(8))
    for threshold in (bound - 0.01, bound + 0.01):
        assert Entropy(threshold=threshold).goes_on(logits, 0) == (threshold < bound)
    for threshold in (math.sqrt(math.log(8)) - 0.01, math.sqrt(math.log(8)) + 0.01):
        assert Entropy(form="svip", threshold=threshold).goes_on(logits, 0) == (threshold**2 > math.log(8))


def test_adaedls_threshold_follows_acceptance_and_svips_stays() -> None:
    for form, moves in (("adaedl", True), ("svip", False)):
        stop = Entropy(form=form)
        stop.begin(NOBODYS)
        begun = stop.threshold
        for _ in range(30):
            stop.learn(4, 0)
        stop.learn(0, 0)
        raised = stop.threshold
        stop.begin(NOBODYS)
        for _ in range(30):
            stop.learn(4, 4)
        assert (raised > begun > stop.threshold) if moves else raised == begun == stop.threshold
        stop.begin(NOBODYS)
        assert stop.threshold == begun, "every sample begins anew"


# ----------------------------------------------------------------------------------------------------------------- goodput
def test_expected_emitted_is_a_run_cut_at_its_first_failure() -> None:
    """By enumeration of all verdicts on four drafts, and where the closed form divides by zero."""
    for chance in (0.0, 0.3, 0.9):
        mean = 0.0
        for stands in itertools.product((True, False), repeat=4):
            weight = math.prod(chance if stood else 1 - chance for stood in stands)
            mean += weight * (1 + len(list(itertools.takewhile(bool, stands))))
        assert emitted_sequential(chance, 4) == pytest.approx(mean)
    assert emitted_sequential(1.0, 4) == 5 and emitted_sequential(0.5, 0) == 1


def test_the_best_length_by_hand() -> None:
    assert best_length([0.0], [1.0, 1.1, 1.2]) == 0, "nothing is accepted: nothing is drafted"
    assert best_length([1.0], [1.0, 1.1, 1.2]) == 2
    assert best_length([0.5], [1.0, 1.5, 1.75]) == 0, "1, 1 and 1: of equals the shortest"
    assert best_length([0.5], [1.0, 1.2, 1.7]) == 1
    assert best_length([0.9, 0.0], [1.0, 1.2, 1.7]) == 1, "a batch drafts what pays for all: 2 > 2.42 / 1.2 ..."
    assert best_length([0.9] * 4, [1.0, 2.0, 3.0]) == 0, "a loaded machine: the same acceptance, and no drafting"


def told(draft_length: int, seconds: list[float], **options: int) -> Goodput:
    stop = Goodput(draft_length=draft_length, **options)
    stop.round_seconds = seconds
    return stop


def test_goodput_learns_and_never_forgets_how_to_start_again() -> None:
    stop = told(3, [1.0, 1.5, 2.0, 2.5], probe_every=4)
    assert stop.budget(9) == 3 and stop.budget(2) == 2, "nothing is known: all that is allowed"
    stop.learn(3, 0)
    assert stop.acceptance == 0.0
    asked = []
    for _ in range(11):
        asked.append(stop.budget(9))
        stop.learn(asked[-1], 0)
    assert asked == [0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0], "one token in five rounds, and none where there is no room"
    for _ in range(4):
        assert stop.budget(0) == 0
        stop.learn(0, 0)
    assert stop.budget(0) == 0 and stop.budget(1) == 1
    for _ in range(200):
        stop.learn(1, 1)
    assert stop.budget(9) == 3, "the draft became good, and it was noticed"
    stop.reset()
    assert stop.acceptance is None


def test_the_estimate_of_acceptance_does_not_depend_on_the_length() -> None:
    """accepted / (accepted + rejections): 0.8 whether two or eight are drafted; accepted / drafted would say 0.72 and 0.42."""
    for length in (2, 8):
        stop, coins = told(length, [1.0] * 9, half_life=100_000), random.Random(length)
        for _ in range(4000):
            stands = [coins.random() < 0.8 for _ in range(length)]
            stood = [*stands, False].index(False)
            stop.learn(length, stood)
        assert stop.acceptance == pytest.approx(0.8, abs=0.02)


def test_goodput_drafts_where_it_pays_and_not_where_it_does_not(bare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same models and acceptance; only what a round costs differs."""
    means = {}
    for name, a_draft in (("cheap", 0.01), ("dear", 5.0)):
        monkeypatch.setattr(
            goodput, "measure_rounds", lambda target, drafts, a=a_draft: [1 + a * n for n in range(len(drafts))]
        )
        rounds = rounds_of(bare, Speculative(draft_length=4, stop="goodput"))
        means[name] = sum(r.num_drafted for r in rounds[4:]) / len(rounds[4:])
        if name == "dear":
            assert 0 < sum(r.num_drafted > 0 for r in rounds[4:]) < len(rounds) / 8, "probed, and no more"
    assert means["cheap"] > 2.5 and means["dear"] < 0.3, means


@pytest.mark.parametrize(
    "method",
    [
        lambda: Speculative(draft_length=4, stop="goodput"),
        lambda: Speculative(draft_length=4, stop="goodput", rule="delta"),
        lambda: LayerSkip(draft_length=3, stop="goodput"),
        lambda: Swift(draft_length=3, stop="goodput"),
        lambda: PromptLookup(stop="goodput"),
        lambda: Sam(stop="goodput"),
    ],
    ids=["speculative", "delta", "layerskip", "swift", "prompt_lookup", "sam"],
)
def test_rounds_are_timed_without_a_trace(method: Callable[[], Method], bare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real measurements on real models: the ids stay the target's, every length has a cost, and run.json is told."""
    monkeypatch.setattr(cost, "_TURNS", 2)
    made = method()
    models = (tiny.model(layers=4), None) if made.needs.of_target else bare
    law = SamplingLaw(0.8) if made.rule == "delta" else SamplingLaw()
    around = tiny.runtime(*models, law)
    request = tiny.request(around, tiny.prompt(6))
    tiny.opened(made, around)
    facts, longest, output = made.facts(), made.stop.draft_length, made.decode(request).output_ids
    assert output == tiny.opened(Method(), around).decode(request).output_ids or not law.greedy
    costs = [facts["round_seconds_of_length_0"], facts[f"round_seconds_of_length_{longest}"]]
    assert 0 < costs[0] <= costs[1]
    assert made.needs.scope == "session"
    made.settle()
    made.reset()
    assert made.decode(request).output_ids == output


# -------------------------------------------------------------------------------------------------------------- specdec_pp
class Heard:
    """What `SpecDecPlusPlus` sees of its drafter: forwards of the round, and the hidden state of the token fed last, which is
    here the chance itself that the token stands."""

    def __init__(self) -> None:
        self.num_forwards, self.session = 0, SimpleNamespace(tapped={})

    def says(self, chance: float) -> None:
        self.session.tapped[-1] = torch.tensor([[0.0], [chance]])


def watching(heard: Heard, threshold: float) -> SpecDecPlusPlus:
    stop = SpecDecPlusPlus(draft_length=9, threshold=threshold)
    stop.drafter, stop.head = heard, lambda chance: torch.cat([1 - chance, chance]).log()  # type: ignore[assignment]
    return stop


def test_specdec_pp_multiplies_the_chances_of_what_was_fed() -> None:
    """The pending token is judged already, and the newest one never: two at least."""
    heard = Heard()
    stop = watching(heard, 0.4)
    for _ in range(2):
        said = []
        for forwards, chance in ((1, 0.01), (2, 0.9), (3, 0.8), (4, 0.7)):
            heard.num_forwards = forwards
            heard.says(chance)
            said.append(stop.goes_on(torch.zeros(1, 3), 0))
        assert said == [True, True, True, False], "0.9 x 0.8 x 0.7: a rejection with chance 0.5"


def test_specdec_pp_keeps_the_law_of_ratio() -> None:
    """A head that says anything of each prefix; the chain is stopped in some branches and goes on in others."""
    heard, lengths = Heard(), set[int]()

    class Watched(Toy):
        def root(self) -> torch.Tensor:
            heard.num_forwards = 1
            return super().root()

        def next(self, tokens: list[int], parents: list[int]) -> torch.Tensor:
            logits = super().next(tokens, parents)
            heard.num_forwards += 1
            heard.says(random.Random(repr(self.paths[-1])).random())
            return logits

    def drafter(language: Any, rng: Any) -> DraftTree:
        tree = Chain().grow(Watched(language), 3, Coins(rng), 0, watching(heard, 0.5))  # type: ignore[arg-type]
        lengths.add(len(tree.tokens))
        return tree

    for pair in ("any", "zeros in p", "top-p"):
        assert round_error(*PAIRS[pair](3), drafter, ratio, 4) < EXACT
    assert lengths == {2, 3}


def test_proposals_are_the_drafts_and_accepted_as_the_ratio_rule_would() -> None:
    p, q = torch.tensor([[[0.2, 0.8], [0.5, 0.5]]]).log(), torch.tensor([[[0.9, 0.1], [0.5, 0.5]]]).log()
    for temperature, chance in ((1.0, (0.2 / 0.9, 1.0)), (0.0, (0.0, 1.0))):
        seen: dict[tuple[int, int], float] = {}
        for seed in range(60):
            tokens, chances = proposals(p, q, torch.tensor([temperature]), torch.Generator().manual_seed(seed))
            seen |= {(place, int(tokens[0, place])): float(chances[0, place]) for place in range(2)}
        assert seen[0, 0] == pytest.approx(chance[0]) and seen[1, 0] == pytest.approx(chance[1])
        assert ((0, 1) in seen) == (temperature > 0), "the unlikely one is proposed where tokens are drawn"
        assert seen.get((0, 1), 1.0) == 1.0


def test_a_draft_over_some_ids_proposes_those_alone() -> None:
    whole = torch.tensor([[[0.1, 0.2, 0.3, 0.4]]]).log()
    q = torch.tensor([[[0.0, 0.5, 0.0, 0.5]]]).log()
    seen = {}
    for seed in range(30):
        tokens, chances = proposals(whole, q, torch.tensor([1.0]), torch.Generator().manual_seed(seed))
        seen[int(tokens)] = float(chances)
    assert seen == {1: pytest.approx(0.4), 3: pytest.approx(0.8)}


def test_rejections_weigh_six_times_and_what_was_not_proposed_nothing() -> None:
    scores = torch.tensor([[[0.0, 1.0], [0.0, 1.0], [5.0, 0.0]]])
    no, yes = (-scores[0, 0].log_softmax(-1)).tolist()
    for labels, value in (([1.0, -1.0, -1.0], yes), ([0.0, -1.0, -1.0], 6 * no), ([1.0, 0.5, -1.0], (1.5 * yes + 3 * no) / 2)):
        loss = acceptance_loss(lambda hidden: scores, torch.zeros(1, 3), scores, torch.tensor([labels]))  # type: ignore[arg-type]
        assert float(loss) == pytest.approx(value)


def test_a_head_learns_which_proposals_are_rejected() -> None:
    """Of a draft that mixes up half of its vocabulary: from nothing to better than chance, on text that it was not shown."""
    target = tiny.module(seed=3)
    draft = tiny.noisy_copy(target, 0.0)
    draft.lm_head.weight[32:] = draft.lm_head.weight[32:].flip(0)
    texts = torch.stack([torch.tensor(tiny.prompt(32, seed)) for seed in range(160)])
    hidden = final_hidden(target, texts, False)
    own = iter(range(0, 10_000, 16))

    def some(rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        start = next(own) % 128
        return texts[start : start + rows], hidden[start : start + rows]

    torch.manual_seed(0)
    head = AcceptanceHead(TargetParts.of(draft), num_layers=2)
    batches = MixedBatches(SimpleNamespace(next=some), target, draft, [0.0, 1.0], seed=0)  # type: ignore[arg-type]
    before = calibrate_head(head, target, draft, greedy_texts(target, texts[128:]), 0)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        acceptance_loss(head, *batches.next(16, 32)).backward()
        optimizer.step()
    after = calibrate_head(head, target, draft, greedy_texts(target, texts[128:]), 0)
    assert after["right_order"] > 0.62 > before["right_order"] + 0.05 and after["loss"] < before["loss"] / 2, (before, after)
    assert after["said_of_accepted"] > after["said_of_rejected"] and 0.1 < after["accepted"] < 0.9


def test_mixed_text_holds_proposals_where_there_are_labels() -> None:
    target = tiny.module(seed=3)
    ids = torch.tensor([[*tiny.prompt(20), -1, -1]])
    hidden = final_hidden(target, ids.clamp(min=0), False)
    read: list[torch.Tensor] = []

    class Reading(torch.nn.Module):
        def forward(self, **inputs: Any) -> Any:
            read.append(inputs["input_ids"].clone())
            return target(**inputs)

    _, labels = mixed(ids, hidden, target, Reading(), torch.zeros(1), 0.5, torch.Generator().manual_seed(0))
    exchanged = labels[0] >= 0
    assert not exchanged[0] and not exchanged[20:].any() and 4 < int(exchanged.sum()) < 16
    assert (read[1][0, 1:20] == ids[0, 1:20])[~exchanged[1:20]].all()
    own = target(input_ids=read[0]).logits[0].argmax(-1)[:-1]
    assert (read[1][0, 1:] == own)[exchanged[1:]].all() and (labels[0][exchanged] == 1).all(), "its own draft is always right"
    judged = (torch.arange(22) >= 9)[None]  # the reply begins at place 10
    _, labels = mixed(ids, hidden, target, Reading(), torch.zeros(1), 1.0, torch.Generator().manual_seed(0), judged)
    assert (labels[0] >= 0).nonzero().flatten().tolist() == list(range(10, 20)), "a chat's prompt is nobody's proposal"


@pytest.fixture(scope="module")
def trained(miniature: Miniature, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], PairSpec]:
    """An acceptance head of the miniature pair, by the training command; its report; the pair."""
    out = tmp_path_factory.mktemp("acceptance") / "head"
    folder = miniature.pair
    settings = settings_for("acceptance_head", miniature.source, miniature.work, out, mantissa_bits=7)
    settings.parts["acceptance_head"] = PartSettings(kind="acceptance_head", tokens=1_024, length=64, rows=4)
    settings.pair = PairConfig(target=str(folder / "target"), draft=str(folder / "draft"))
    report = run(settings)
    specs = [ModelSpec(role, role, str(folder / role), "float32", "cpu", None, "sdpa", False) for role in ("target", "draft")]
    return out, report, PairSpec("mine", *specs, 300, 300)


def node_with(head: Path, threshold: float = 0.7) -> dict[str, Any]:
    node = {"_target_": "specbench.parts.stops.specdec_pp.SpecDecPlusPlus", "head": str(head), "threshold": threshold}
    return {"_target_": "specbench.methods.chains.speculative.Speculative", "draft_length": 6, "stop": node}


def test_the_command_trains_an_acceptance_head_that_stops_drafts_and_changes_no_output(trained: Any) -> None:
    head, report, pair = trained
    assert report["complete"] and 0 < report["calibration"]["right_order"] < 1
    assert "Written by `python -m specbench.train part=acceptance_head`" in (head / "README.md").read_text()
    drafted = {}
    for threshold in (0.3, 1.0):
        bench = Bench(node_with(head, threshold), pair, PROMPTS[:1])
        try:
            for check in (greedy_identity, sampled_identity) if threshold < 1 else ():
                assert check(bench).status == PASS, check(bench).detail
            rounds = bench.decode(GREEDY, bench.request(0)).rounds
            drafted[threshold] = sum(r.num_drafted for r in rounds) / len(rounds)
            assert bench.method(GREEDY).facts()["acceptance_head"] == str(head)
            assert bench.method(GREEDY).memory_bytes()["acceptance_head"] > 0
        finally:
            bench.close()
    assert drafted[0.3] < drafted[1.0], drafted


def test_a_head_of_other_models_is_refused(trained: Any) -> None:
    head, _, pair = trained
    swapped = PairSpec("swapped", pair.target, replace(pair.target, role="draft"), 300, 300)
    other = PairSpec("other", replace(pair.draft, role="target"), pair.draft, 300, 300)
    for changed, words in ((swapped, "pair.draft has"), (other, "on what a target of sha256")):
        bench = Bench(node_with(head), changed, PROMPTS[:1])
        with pytest.raises(ConfigError, match=words) as refused:
            bench.method(GREEDY)
        assert refused.value.key == "method.stop.head"
    with pytest.raises(ConfigError, match=r"part=acceptance_head") as refused:
        Bench({**node_with(head), "stop": "specdec_pp"}, pair, PROMPTS[:1]).method(GREEDY)
    assert refused.value.key == "method.stop.head"


# ------------------------------------------------------------------------------------------------------------------ memory
def kept_within(options: dict[str, Any], budget_mib: float | None, prompt: int = 20, tokens: int = 24) -> tuple[Any, Any, Any]:
    """A method under a budget on small models of transformers, its largest round's logits, and the outcome."""
    target = tiny.module(layers=3, hidden=64)
    models = tiny.Model.wrap(target), tiny.Model.wrap(tiny.noisy_copy(target, 0.05))
    around = tiny.runtime(*models, None, tokens)
    method = tiny.opened(Speculative(stop=Memory(budget_mib=budget_mib), **options), around)
    seen = {"logits": 0}
    session, forward = method.target, method.target.forward

    def watched(tree: DraftTree) -> Any:
        evidence = forward(tree)
        seen["logits"] = max(seen["logits"], evidence.logits.nbytes)
        return evidence

    session.forward = watched  # type: ignore[method-assign]
    outcome = method.decode(tiny.request(around, tiny.prompt(prompt)))
    assert outcome.output_ids == tiny.opened(Method(), around).decode(tiny.request(around, tiny.prompt(prompt))).output_ids
    return method, seen, outcome


@pytest.mark.parametrize("options", [{"draft_length": 6}, {"draft_length": 4, "shape": "dynamic", "num_nodes": 9, "top_k": 3}])
def test_the_footprint_is_what_is_held(options: dict[str, Any]) -> None:
    """Every byte of weights, caches and logits, counted on the tensors; of the masks an upper bound."""
    method, seen, outcome = kept_within(options, budget_mib=None)
    stop = method.stop
    stop.begin(tiny.request(method.setting.runtime, tiny.prompt(20)))
    foreseen = stop.parts(stop.sizes[0], 20, 24)
    runtime, held = method.setting.runtime, method.memory_bytes()
    for role, model in (("target", runtime.target), ("draft", runtime.draft)):
        assert foreseen[f"{role}_weights"] == sum(p.nbytes for p in model.module.parameters())
        assert foreseen[f"{role}_kv"] == held[f"{role}_kv"], role
    rows = 1 + max(r.num_drafted for r in outcome.rounds)
    assert foreseen["target_logits"] == seen["logits"] == rows * tiny.VOCAB * 4
    mask = build(runtime.target.plan, 43 - rows, range(rows), None, torch.float32, torch.device("cpu"))
    assert mask.nbytes <= foreseen["target_mask"] <= 1.6 * mask.nbytes  # type: ignore[union-attr]


@pytest.mark.parametrize("options", [{"draft_length": 6}, {"draft_length": 4, "shape": "dynamic", "num_nodes": 9, "top_k": 3}])
def test_a_smaller_budget_is_a_shorter_draft_or_a_smaller_tree_and_is_kept_to(options: dict[str, Any]) -> None:
    method, _, outcome = kept_within(options, budget_mib=None)
    stop, widest = method.stop, max(r.num_drafted for r in outcome.rounds)
    totals = [sum(stop.parts(size, 20, 24).values()) for size in stop.sizes]
    assert totals == sorted(totals, reverse=True) and len(set(totals)) == len(totals)
    wanted = stop.sizes[len(stop.sizes) // 2]
    budget = sum(stop.parts(wanted, 20, 24).values())
    smaller, seen, outcome = kept_within(options, budget_mib=budget / 2**20)
    assert max(r.num_drafted for r in outcome.rounds) == wanted[1] < widest
    held = smaller.memory_bytes()
    counted = held["target_kv"] + held["draft_kv"] + seen["logits"] + smaller.stop.footprint.target.weight_bytes * 2
    assert counted <= budget < counted + 20_000, "kept to, and used"
    facts = smaller.facts()
    assert facts["context_limit_tokens_of_full_drafts"] < 44 <= facts["context_limit_tokens"]


def test_a_context_that_does_not_fit_is_one_line_and_a_budget_below_the_weights_too() -> None:
    method, _, _ = kept_within({"draft_length": 3}, budget_mib=None)
    stop = method.stop
    budget = sum(stop.parts((0, 0), 20, 24).values())
    method, _, outcome = kept_within({"draft_length": 3}, budget_mib=budget / 2**20)
    assert max(r.num_drafted for r in outcome.rounds) == 0, "a plain step is within the budget"
    with pytest.raises(ValueError, match=r"a prompt of 21 tokens with 24 new ones does not fit .* room for 44 in all"):
        method.decode(tiny.request(method.setting.runtime, tiny.prompt(21)))
    with pytest.raises(ConfigError, match="the weights of both models alone") as refused:
        kept_within({"draft_length": 3}, budget_mib=0.01)
    assert refused.value.key == "method.stop.budget_mib"


def test_a_warm_up_prompt_that_does_not_fit_is_shortened_and_a_measured_one_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    method, _, _ = kept_within({"draft_length": 3}, budget_mib=None)
    budget = sum(method.stop.parts((0, 0), 20, 24).values())
    method, _, _ = kept_within({"draft_length": 3}, budget_mib=budget / 2**20)
    arm, make = SimpleNamespace(name="method", method=method), method.setting.runtime
    small, large = (tiny.request(make, tiny.prompt(size)) for size in (20, 42))
    first, second = passes.fitting(arm, [small, large])  # type: ignore[arg-type]
    assert first is small and second.prompt_ids == large.prompt_ids[:10]
    assert "a warm-up prompt of 42 tokens does not fit method.stop and is shortened to 10 tokens" in capsys.readouterr().err
    method.decode(second)
    with pytest.raises(ValueError, match="does not fit"):
        method.decode(large)
    method.stop.budget_bytes = 1
    assert passes.fitting(arm, [small]) == [] and "is left out" in capsys.readouterr().err  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------- where refused
@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("chains.speculative.Speculative", {"stop": "goodput", "shape": "dynamic"}, "is a dynamic tree"),
        ("heads.medusa.Medusa", {"stop": "goodput"}, "is a static tree"),
        ("heads.eagle.Eagle", {"stop": "goodput"}, "is a dynamic tree"),
        ("text.rasd.Rasd", {"stop": "goodput"}, "is a dynamic tree"),
        ("overlap.amusd.Amusd", {"stop": "goodput"}, "a process of its own"),
        ("overlap.pearl.Pearl", {"stop": "goodput"}, "a process of its own"),
        ("overlap.amusd.Amusd", {"stop": "specdec_pp"}, "a process of its own"),
        ("overlap.pearl.Pearl", {"stop": "memory"}, "a process of its own"),
        ("heads.medusa.Medusa", {"stop": "memory"}, "num_nodes for other trees"),
        ("layers.swift.Swift", {"stop": "memory"}, "sizes the drafts of a draft model"),
        ("layers.layerskip.LayerSkip", {"stop": "specdec_pp"}, "drafts without one"),
        ("layers.swift.Swift", {"stop": "specdec_pp"}, "drafts without one"),
        ("text.prompt_lookup.PromptLookup", {"stop": "confidence"}, "behind every token"),
        ("text.prompt_lookup.PromptLookup", {"stop": "entropy"}, "behind every token"),
        ("text.prompt_lookup.PromptLookup", {"stop": "specdec_pp"}, "'specdec_pp'"),  # as it was typed
    ],
)
def test_a_stop_that_would_not_get_what_it_needs_is_refused_when_it_is_made(method: str, options: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        create_method({"_target_": f"specbench.methods.{method}", **options})
    assert refused.value.key == "method.stop"


def test_a_plugins_stop_that_is_opened_is_refused_in_a_worker_too() -> None:
    class Opened(Stop):
        def open(self, setting: Any) -> None:
            self.target = setting.target

    for method in ("amusd.Amusd", "pearl.Pearl"):
        with pytest.raises(ConfigError, match="a process of its own"):
            create_method({"_target_": f"specbench.methods.overlap.{method}", "stop": Opened()})


def test_a_target_that_cannot_go_back_is_refused() -> None:
    stop = Goodput(draft_length=2)
    with pytest.raises(ConfigError, match="going back"):
        stop.open(SimpleNamespace(target=object()))  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------- what it hears of
def test_a_stop_hears_nothing_of_drafts_whose_length_was_not_its_own(bare: Any) -> None:
    heard: list[tuple[int, int]] = []

    class Listening(Stop):
        def learn(self, num_drafted: int, num_accepted: int) -> None:
            heard.append((num_drafted, num_accepted))

    around = tiny.runtime(*bare, None, 40)
    method = tiny.opened(Sam(draft_length=2, min_match=1, stop=Listening()), around)
    rounds = method.decode(tiny.request(around, [5, 6, 7, 8] * 3)).rounds
    copied = [r for r in rounds if r.phase == "copied"]
    assert copied and len(copied) < len(rounds), "some of both"
    assert heard == [(r.draft_depth, r.num_accepted) for r in rounds if r.phase != "copied"]
    assert max(drafted for drafted, _ in heard) <= 2 < max(r.draft_depth for r in copied), (
        "it would have learnt of other lengths"
    )


# ---------------------------------------------------------------------------------------------------------------- the law
class Withholding(Chain):
    """Shows the target nothing of a last token that the draft itself found unlikely: a stop about what was drawn already."""

    def grow(self, *given: Any) -> DraftTree:
        tree = super().grow(*given)
        if tree.q is not None and float(tree.q[-1][tree.tokens[-1]]) < 0.4:
            return DraftTree(tree.tokens[:-1], contract=tree.contract, q=tree.q[:-1])
        return tree


STOPS: dict[str, Callable[[], Stop]] = {
    "entropy": lambda: Entropy(threshold=0.717),
    "svip": lambda: Entropy(form="svip", threshold=0.632),
    "confidence": lambda: Confidence(threshold=0.4),
}


@pytest.mark.parametrize("name", STOPS)
def test_ratio_keeps_the_law_whatever_a_stop_says_of_the_next_token(name: str) -> None:
    stopped = 0
    for pair in PAIRS:
        target, draft = PAIRS[pair](3)
        lengths: list[int] = []

        def drafter(language: Any, rng: Any, lengths: list[int] = lengths) -> DraftTree:
            tree = drawn_by(Chain(), 3, STOPS[name]())(language, rng)
            lengths.append(len(tree.tokens))
            return tree

        assert round_error(target, draft, drafter, ratio, 4) < EXACT, pair
        stopped += len(set(lengths)) > 1
    assert stopped >= 3, "here and there it stopped, and went on"


def test_a_token_that_is_withheld_for_what_it_is_breaks_the_law() -> None:
    target, draft = PAIRS["any"](3)
    assert round_error(target, draft, drawn_by(Withholding(), 2), ratio, 3) > WRONG


@pytest.mark.parametrize("law", LAWS, ids=["greedy", "sampled"])
@pytest.mark.parametrize("stop", [lambda: Entropy(threshold=0.5), lambda: Entropy(form="svip", threshold=0.9)])
def test_entropy_changes_rounds_and_no_output(bare: Any, stop: Callable[[], Stop], law: SamplingLaw) -> None:
    depths = {r.draft_depth for r in rounds_of(bare, Speculative(draft_length=4, stop=stop()), law)}
    assert len(depths - {0}) > 1
