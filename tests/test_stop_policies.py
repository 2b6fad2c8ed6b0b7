"""Stops that learn, measure or look: what they decide, that no law is moved by it, and where they are refused."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from law_tools import EXACT, PAIRS, WRONG, round_error
from test_trees import drawn_by

from specbench.config.options import ConfigError
from specbench.engine.request import NOBODYS
from specbench.engine.sampling import SamplingLaw
from specbench.engine.tree import DraftTree
from specbench.method import Chain, Method, Stop, create_method
from specbench.methods.chains.speculative import Speculative
from specbench.methods.layers.layerskip import LayerSkip
from specbench.methods.layers.swift import Swift
from specbench.methods.text.prompt_lookup import PromptLookup
from specbench.methods.text.sam import Sam
from specbench.parts.rules.chain import ratio
from specbench.parts.shapes import cost
from specbench.parts.stops import goodput
from specbench.parts.stops.confidence import Confidence
from specbench.parts.stops.entropy import Entropy, entropy_nats
from specbench.parts.stops.goodput import Goodput, best_length, expected_emitted

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
        assert expected_emitted(chance, 4) == pytest.approx(mean)
    assert expected_emitted(1.0, 4) == 5 and expected_emitted(0.5, 0) == 1


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
        ("text.prompt_lookup.PromptLookup", {"stop": "confidence"}, "behind every token"),
        ("text.prompt_lookup.PromptLookup", {"stop": "entropy"}, "behind every token"),
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
