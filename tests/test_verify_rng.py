"""The production generator of the acceptance rules: its draws, and real rounds with it."""

import math

import pytest
import torch
from law_tools import (
    Language,
    drawn_tree,
    law_of,
)
from scipy import stats

from specbench.engine.tree import Contract, DraftTree, Verdict
from specbench.parts.rules.rule import (
    TorchRng,
    ratio,
)

IID, WITHOUT, FIXED = Contract.IID, Contract.WITHOUT_REPLACEMENT, Contract.FIXED_SET


def test_torch_rng_is_reproducible_and_owns_its_generator():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    draws = [[TorchRng.seeded(seed).categorical(torch.full((50,), 0.02)) for _ in range(2)] for seed in range(20)]
    assert all(left == right for left, right in draws)
    assert len({left for left, _ in draws}) > 10
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"


def test_torch_rng_draws_its_distributions():
    rng = TorchRng.seeded(0)
    law = torch.tensor([0.0, 0.5, 0.0, 0.2, 0.3, 0.0])
    counts = torch.bincount(torch.tensor([rng.categorical(law) for _ in range(5000)]), minlength=6)
    assert (counts[law == 0] == 0).all()
    assert stats.chisquare(counts[law > 0].numpy(), (law[law > 0].double() * 5000).numpy()).pvalue > 1e-4
    heads = sum(rng.bernoulli(0.3) for _ in range(5000))
    assert stats.binomtest(heads, 5000, 0.3).pvalue > 1e-4
    assert not any(rng.bernoulli(0.0) for _ in range(200)) and all(rng.bernoulli(1.0) for _ in range(200))


@pytest.mark.parametrize(("uniform", "expected"), [(0.0, 1), (math.nextafter(1.0, 0.0), 3)])
def test_torch_rng_never_draws_a_token_of_probability_zero(monkeypatch, uniform, expected):
    monkeypatch.setattr(TorchRng, "_uniform", lambda self: uniform)
    assert TorchRng.seeded(0).categorical(torch.tensor([0.0, 0.1, 0.2, 0.7, 0.0])) == expected
    monkeypatch.setattr(TorchRng, "_uniform", lambda self: 1.0 if uniform else 0.0)  # as if rounding reached the total
    assert TorchRng.seeded(0).categorical(torch.tensor([0.0, 0.1, 0.2, 0.7, 0.0])) == expected


def resample_from_p(tree, p, rng):
    """A rejection is followed by a draw from p instead of the residual."""
    verdict = ratio(tree, p, rng)
    if verdict.num_accepted < len(tree.tokens):
        return Verdict(verdict.path, (*verdict.tokens[:-1], rng.categorical(p[verdict.num_accepted])))
    return verdict


def emitted_pvalue(rule, drafter, rounds=3000):
    """Chi-square of three-token sequences of real rounds (as many as needed) against the target's law."""
    target, draft, rng = Language(91, spread=1.0), Language(92, spread=1.0), TorchRng.seeded(7)
    counts = dict.fromkeys(law_of(target, 3), 0)
    for _ in range(rounds):
        done = []
        while len(done) < 3:
            start = tuple(done)
            here = Language(draft.seed)
            here.after = lambda prefix, start=start: draft.after((*start, *prefix))
            tree = drafter(here, rng)
            prefixes = [(*start, *tree.tokens[:depth]) for depth in range(len(tree.tokens) + 1)]
            done += rule(tree, torch.stack([target.after(prefix) for prefix in prefixes]), rng).tokens
        counts[tuple(done[:3])] += 1
    expected = [probability * rounds for probability in law_of(target, 3).values()]
    return stats.chisquare(list(counts.values()), expected).pvalue


def test_real_rounds_follow_the_law_and_a_wrong_rule_does_not():
    assert emitted_pvalue(ratio, drawn_tree([1, 1], IID)) > 1e-4
    assert emitted_pvalue(resample_from_p, drawn_tree([1, 1], IID)) < 1e-4


def test_a_draft_that_shares_the_seed_of_the_rule_is_biased():
    """Why TorchRng asks for a stream of its own: with equal streams the first coin depends on the drafted token."""
    target, draft = Language(95, spread=1.0), Language(96, spread=1.0)
    p, q = target.after(()), draft.after(())

    def pvalue(offset):
        counts = torch.zeros(3)
        for seed in range(2000):
            token = TorchRng.seeded(seed + offset).categorical(q)
            counts[ratio(DraftTree([token], None, IID, q[None]), torch.stack([p, p]), TorchRng.seeded(seed)).tokens[0]] += 1
        return stats.chisquare(counts.numpy(), (p * 2000).float().numpy()).pvalue

    assert pvalue(0) < 1e-4
    assert pvalue(10**6) > 1e-4
