"""The ratio rule keeps the target's law in real rounds: sessions, caches, two models, many seeds.

The law of the first tokens is enumerated from the target; the token after a fully accepted round is judged by its probability
integral transform, which is uniform given whatever came before. Wrong rules and a draft that misreports its law must fail the
same tests. (Exact laws of the rules alone, without models: tests/test_verify_laws.py.)
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import tiny
import torch
from scipy import stats as scipy_stats

from specbench.engine.model import Model
from specbench.engine.request import Outcome
from specbench.engine.sampling import SamplingLaw
from specbench.engine.tree import DraftTree, Verdict
from specbench.methods.chains.speculative import Speculative
from specbench.parts.rules import rule as verify
from specbench.parts.rules.chain import residual

VOCAB, PROMPT = 6, (1, 4)
LENGTH, TOKENS = 2, 6  # drafts per round; the prefill's token, a full round of three, and two more
LAWS = {"T=1": SamplingLaw(1.0), "T=0.7 top-p 0.9": SamplingLaw(0.7, top_p=0.9)}
SAMPLES, FEWER, ALL = 600, 500, 3000
FITS, FAILS = 1e-3, 1e-6  # p-values: above the first a law counts as kept, below the second as broken


@functools.cache
def models() -> tuple[Model, Model]:
    """Two models that accept a third of the blocks in full, and differ enough for a wrong rule to move the law by 0.14."""
    return tiny.bare(VOCAB, seed=4), tiny.bare(VOCAB, seed=22)


@functools.cache
def laws_after(law: SamplingLaw, depth: int) -> dict[tuple[int, ...], np.ndarray]:
    """The target's law of the next token after every continuation of the prompt by `depth` tokens."""
    prefixes = list(itertools.product(range(VOCAB), repeat=depth))
    ids = torch.tensor([[*PROMPT, *prefix] for prefix in prefixes])
    with torch.inference_mode():
        logits = models()[0].module(input_ids=ids, position_ids=torch.arange(ids.shape[1]).unsqueeze(0)).logits[:, -1]
    rows = law.probabilities(logits).double().numpy()
    return dict(zip(prefixes, rows / rows.sum(axis=1, keepdims=True), strict=True))


def law_of_first(law: SamplingLaw, length: int) -> dict[tuple[int, ...], float]:
    """Exact probability of every sequence of the first `length` tokens."""
    sequences: dict[tuple[int, ...], float] = {(): 1.0}
    for depth in range(length):
        after = laws_after(law, depth)
        sequences = {
            (*prefix, token): probability * float(after[prefix][token])
            for prefix, probability in sequences.items()
            for token in range(VOCAB)
        }
    return sequences


def decode(law: SamplingLaw, samples: int, compat: str | None = None, tokens: int = TOKENS) -> list[Outcome]:
    around = tiny.runtime(*models(), law, tokens)
    method = tiny.opened(Speculative(draft_length=LENGTH, rule="ratio", compat=compat), around)
    return [method.decode(tiny.request(around, PROMPT, sample_id=str(sample))) for sample in range(samples)]


@functools.cache
def honest(law: SamplingLaw, compat: str | None = None) -> list[Outcome]:
    return decode(law, SAMPLES, compat)


def chi_square(outcomes: Sequence[Outcome], law: SamplingLaw, positions: tuple[int, ...]) -> float:
    """p-value of the tokens at these output positions against their exact joint law; rare cells are pooled."""
    expected: dict[tuple[int, ...], float] = {}
    for sequence, probability in law_of_first(law, max(positions) + 1).items():
        cell = tuple(sequence[position] for position in positions)
        expected[cell] = expected.get(cell, 0.0) + probability * len(outcomes)
    seen = dict.fromkeys(expected, 0)
    for outcome in outcomes:
        seen[tuple(outcome.output_ids[position] for position in positions)] += 1
    if any(count and not expected[cell] for cell, count in seen.items()):
        return 0.0  # a token that the target can never emit
    common = [cell for cell, value in expected.items() if value >= 8]
    rare = [cell for cell, value in expected.items() if 0 < value < 8]
    e = [expected[cell] for cell in common] + ([sum(expected[cell] for cell in rare)] if rare else [])
    o = [seen[cell] for cell in common] + ([sum(seen[cell] for cell in rare)] if rare else [])
    return float(scipy_stats.chisquare(o, e).pvalue)


def transform(outcomes: Sequence[Outcome], law: SamplingLaw, position_of: Callable[[Outcome], int | None]) -> list[float]:
    """F(token - 1) + V p(token) of the token at one position per outcome, V uniform: uniform if the law is kept."""
    chance = np.random.default_rng(0)
    values = []
    for outcome in outcomes:
        position = position_of(outcome)
        if position is not None:
            prefix, token = tuple(outcome.output_ids[:position]), outcome.output_ids[position]
            p = laws_after(law, position)[prefix]
            values.append(float(p[:token].sum() + chance.random() * p[token]))
    return values


def uniform(values: Sequence[float]) -> float:
    counts = np.histogram(values, bins=10, range=(0.0, 1.0))[0]
    assert counts.sum() == len(values) >= 100, "too few samples to tell"
    return float(scipy_stats.chisquare(counts).pvalue)


def full(outcome: Outcome) -> bool:
    return outcome.rounds[0].num_accepted == LENGTH


def bonus(outcome: Outcome) -> int | None:
    """The token that ends a fully accepted first round."""
    return 1 + LENGTH if full(outcome) else None


def after_full(outcome: Outcome) -> int | None:
    """The first token of the round after a fully accepted one, in which the draft is fed two tokens."""
    return 2 + LENGTH if full(outcome) else None


def correction(outcome: Outcome) -> int | None:
    """The token that replaces the first rejected draft."""
    return None if full(outcome) else 1 + outcome.rounds[0].num_accepted


CHECKS: dict[str, Callable[[Sequence[Outcome], SamplingLaw], float]] = {
    "first decode token": lambda outcomes, law: chi_square(outcomes, law, (1,)),
    "second decode token": lambda outcomes, law: chi_square(outcomes, law, (2,)),
    "first three tokens": lambda outcomes, law: chi_square(outcomes, law, (0, 1, 2)),
    "bonus": lambda outcomes, law: uniform(transform(outcomes, law, bonus)),
    "after a full round": lambda outcomes, law: uniform(transform(outcomes, law, after_full)),
}


def p_values(outcomes: Sequence[Outcome], law: SamplingLaw) -> dict[str, float]:
    return {name: check(outcomes, law) for name, check in CHECKS.items()}


# -------------------------------------------------------------------------------------------------------- the law is kept
@pytest.mark.parametrize("samples", [SAMPLES, pytest.param(ALL, marks=pytest.mark.deep)])
@pytest.mark.parametrize("law", LAWS)
def test_real_rounds_keep_the_targets_law(law: str, samples: int) -> None:
    outcomes = honest(LAWS[law]) if samples == SAMPLES else decode(LAWS[law], samples)
    found = p_values(outcomes, LAWS[law])
    assert all(p > FITS for p in found.values()), found


@pytest.mark.parametrize("law", LAWS)
def test_the_rounds_cover_what_the_rule_distinguishes(law: str) -> None:
    counts = [sum(outcome.rounds[0].num_accepted == n for outcome in honest(LAWS[law])) for n in range(LENGTH + 1)]
    assert min(counts) > SAMPLES // 20, counts


def test_the_corrections_alone_do_not_have_the_targets_law() -> None:
    """They have the residual's: only accepted and corrected tokens together keep the law. So the transform sees differences."""
    law = LAWS["T=1"]
    assert uniform(transform(honest(law), law, correction)) < FAILS


def test_the_published_baselines_handicap_keeps_the_law() -> None:
    law = LAWS["T=1"]
    outcomes = honest(law, "amusd")
    assert any(r.stale for outcome in outcomes for r in outcome.rounds)
    found = p_values(outcomes, law)
    assert all(p > FITS for p in found.values()), found


# ------------------------------------------------------------------------------------------------------------------ twins
def without_residual(tree: DraftTree, p: torch.Tensor, rng: verify.RuleRng) -> Verdict:
    """Accepts as it should; a rejected draft is replaced by a draw from p itself."""
    accepted = _prefix(tree, p, rng, 1.0)
    return Verdict(tuple(range(accepted)), (*tree.tokens[:accepted], rng.categorical(p[accepted].double())))


def too_generous(tree: DraftTree, p: torch.Tensor, rng: verify.RuleRng) -> Verdict:
    """Accepts with twice the probability; the replacement is right."""
    accepted = _prefix(tree, p, rng, 2.0)
    law = p[accepted].double() if accepted == len(tree.tokens) else residual(p[accepted], _q(tree, accepted))
    return Verdict(tuple(range(accepted)), (*tree.tokens[:accepted], rng.categorical(law)))


def stale_bonus(tree: DraftTree, p: torch.Tensor, rng: verify.RuleRng) -> Verdict:
    """Right until everything stands; then the bonus comes from the row before."""
    accepted = _prefix(tree, p, rng, 1.0)
    law = p[max(0, accepted - 1)].double() if accepted == len(tree.tokens) else residual(p[accepted], _q(tree, accepted))
    return Verdict(tuple(range(accepted)), (*tree.tokens[:accepted], rng.categorical(law)))


def _q(tree: DraftTree, node: int) -> torch.Tensor:
    assert tree.q is not None
    return tree.q[node].double()


def _prefix(tree: DraftTree, p: torch.Tensor, rng: verify.RuleRng, favour: float) -> int:
    for node, token in enumerate(tree.tokens):
        if not rng.bernoulli(min(1.0, favour * float(p[node][token]) / float(_q(tree, node)[token]))):
            return node
    return len(tree.tokens)


@pytest.fixture
def rule(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    def install(function: Callable[..., Verdict]) -> None:
        monkeypatch.setitem(verify.RULES, "ratio", dataclasses.replace(verify.RULES["ratio"], function=function))

    yield install


@pytest.mark.parametrize(
    ("wrong", "shows"),
    [(without_residual, "first decode token"), (too_generous, "first decode token"), (stale_bonus, "bonus")],
)
@pytest.mark.parametrize("law", LAWS)
def test_a_wrong_rule_fails_the_same_test(
    rule: Callable[..., None], wrong: Callable[..., Verdict], shows: str, law: str
) -> None:
    rule(wrong)
    found = CHECKS[shows](decode(LAWS[law], FEWER, tokens=2 + LENGTH), LAWS[law])
    assert found < FAILS, found


def test_a_draft_that_misreports_its_law_fails_the_same_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn from the most likely token on, reported as drawn from q."""
    monkeypatch.setattr(torch, "multinomial", lambda q, count, generator: q.argmax().reshape(1))
    law = LAWS["T=1"]
    found = CHECKS["first decode token"](decode(law, FEWER, tokens=2 + LENGTH), law)
    assert found < FAILS, found
