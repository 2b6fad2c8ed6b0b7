"""The acceptance rules keep the law: exact enumeration of the production code on small vocabularies."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from law_tools import (
    EXACT,
    PAIRS,
    WRONG,
    EnumeratingRng,
    Language,
    best_tree,
    branches,
    broken_claims,
    drawn_tree,
    law_of,
    round_error,
    with_draws,
    worst_error,
)

from specbench.engine.sampling import SamplingLaw
from specbench.engine.tree import Contract, DraftTree, Verdict
from specbench.parts.rules import rule as rule_module
from specbench.parts.rules.chain import residual
from specbench.parts.rules.rule import (
    RULES,
    Rule,
    check_contract,
    delta,
    get_rule,
    k_seq,
    lockstep_ratio,
    match,
    ratio,
    recursive_with_replacement,
    recursive_without_replacement,
)

IID, WITHOUT, FIXED = Contract.IID, Contract.WITHOUT_REPLACEMENT, Contract.FIXED_SET


CHAIN_RULES = {
    "ratio": ratio,
    "recursive_with_replacement": recursive_with_replacement,
    "recursive_without_replacement": recursive_without_replacement,
    "k_seq": k_seq,
    "lockstep_ratio": lockstep_ratio,
    "delta": delta,
    "sample_match": with_draws(match),
}


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("rule", CHAIN_RULES)
@pytest.mark.parametrize("depth", [1, 2])
def test_chains_drawn_from_q_keep_the_law(rule, pair, depth):
    contract = WITHOUT if rule == "recursive_without_replacement" else IID
    for seed in range(3):
        target, draft = PAIRS[pair](seed)
        assert round_error(target, draft, drawn_tree([1] * depth, contract), CHAIN_RULES[rule], depth + 1) < EXACT


@pytest.mark.parametrize("rule", ["ratio", "lockstep_ratio", "delta"])
def test_a_chain_of_three_and_a_larger_vocabulary(rule):
    target, draft = PAIRS["any"](11)
    assert round_error(target, draft, drawn_tree([1, 1, 1], IID), CHAIN_RULES[rule], 4) < EXACT
    target, draft = Language(12, vocab_size=5), Language(13, vocab_size=5)
    assert round_error(target, draft, drawn_tree([1, 1], IID), CHAIN_RULES[rule], 3) < EXACT


TREE_RULES = {
    "recursive_with_replacement": (recursive_with_replacement, IID),
    "recursive_without_replacement": (recursive_without_replacement, WITHOUT),
    "k_seq": (k_seq, IID),
    "delta, drawn i.i.d.": (delta, IID),
    "delta, drawn without replacement": (delta, WITHOUT),
}


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("name", TREE_RULES)
@pytest.mark.parametrize("width", [2, 3])
def test_siblings_drawn_from_q_keep_the_law(name, pair, width):
    rule, contract = TREE_RULES[name]
    for seed in range(2):
        target, draft = PAIRS[pair](seed)
        assert round_error(target, draft, drawn_tree([width], contract), rule, 2) < EXACT


@pytest.mark.parametrize("pair", ["any", "top-p", "zeros in q"])
@pytest.mark.parametrize("name", TREE_RULES)
@pytest.mark.parametrize("shape", [(2, 1), (1, 2)])
def test_trees_of_depth_two_keep_the_law(name, pair, shape):
    rule, contract = TREE_RULES[name]
    target, draft = PAIRS[pair](3)
    assert round_error(target, draft, drawn_tree(shape, contract), rule, 3) < EXACT


@pytest.mark.parametrize("name", TREE_RULES)
def test_a_binary_tree_and_four_siblings_keep_the_law(name):
    rule, contract = TREE_RULES[name]
    target, draft = Language(21, vocab_size=2), Language(22, vocab_size=2)
    assert round_error(target, draft, drawn_tree([2, 2], contract), rule, 3) < EXACT
    target, draft = Language(23, vocab_size=4), Language(24, vocab_size=4)
    assert round_error(target, draft, drawn_tree([4 if contract is WITHOUT else 3], contract), rule, 1) < EXACT


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("rule", [delta, with_draws(match)], ids=["delta", "sample_match"])
@pytest.mark.parametrize("shape", [(1,), (2,), (3,), (2, 1), (1, 2), (1, 1, 1)])
def test_children_chosen_deterministically_keep_the_law(rule, pair, shape):
    target, draft = PAIRS[pair](5)
    assert round_error(target, draft, best_tree(shape), rule, len(shape) + 1) < EXACT


@pytest.mark.parametrize("rule", [delta, with_draws(match)], ids=["delta", "sample_match"])
@pytest.mark.parametrize("contract", [IID, WITHOUT])
def test_matching_and_delta_keep_the_law_of_drawn_trees_too(rule, contract):
    """Why both accept every contract: given the tree, whatever it is, the output has the target's law."""
    target, draft = PAIRS["any"](7)
    assert round_error(target, draft, drawn_tree([2], contract), rule, 2) < EXACT
    target, draft = Language(8, vocab_size=2), Language(9, vocab_size=2)
    assert round_error(target, draft, drawn_tree([2, 1], contract), rule, 3) < EXACT


def merged_chains(language, rng):
    """Three chains beside each other, as retrieval or lookahead offers them: equal tokens under one parent."""
    return DraftTree([0, 1, 0, 2, 1, 0], [-1, 0, -1, 2, -1, 4])


def test_chains_that_share_their_first_tokens_are_followed_together():
    target = Language(31)
    for rule in (delta, with_draws(match)):
        assert round_error(target, target, merged_chains, rule, 3) < EXACT
    verdict = match(merged_chains(None, None), [0, 2, 9, 2, 1, 9, 9])
    assert verdict == Verdict((2, 3), (0, 2, 1)), "the second chain holds the longest path"
    written = torch.eye(3, dtype=torch.float64)[[0, 2, 1, 2, 1, 0, 0]]  # the same target as distributions
    assert delta(merged_chains(None, None), written, EnumeratingRng()) == verdict


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    vocab_size=st.integers(2, 4),
    temperatures=st.tuples(st.floats(0.2, 3.0), st.floats(0.2, 3.0)),
    top_p=st.one_of(st.none(), st.floats(0.3, 1.0)),
    top_k=st.one_of(st.none(), st.integers(1, 4)),
    name=st.sampled_from(sorted(TREE_RULES)),
    width=st.integers(1, 3),
)
def test_any_pair_of_laws(seed, vocab_size, temperatures, top_p, top_k, name, width):
    rule, contract = TREE_RULES[name]
    target = Language(seed, vocab_size, SamplingLaw(temperatures[0], top_k, top_p))
    draft = Language(seed + 1, vocab_size, SamplingLaw(temperatures[1], top_k, top_p))
    assert round_error(target, draft, drawn_tree([width], contract), rule, 2) < EXACT
    assert round_error(target, draft, drawn_tree([1, 1], IID), ratio, 3) < EXACT


# --- every rule there is ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RULES)
def test_every_registered_rule_keeps_what_it_claims(name):
    """As a schedule calls it, for every kind of draft that it accepts; a plugin's rule is one of them once it is registered."""
    assert not broken_claims(RULES[name])


@dataclass(frozen=True)
class Favouring(Rule):
    """A plugin's own: the ratio test on a chain, written anew, with a favour for the draft that 1.0 makes none of."""

    favour: float = 1.0

    def judge(self, tree, evidence, law, position, noise_key, coins):
        check_contract(self, tree.contract)
        p = law.probabilities(evidence.logits)
        for node, token in enumerate(tree.tokens):
            if not coins.bernoulli(min(1.0, self.favour * float(p[node][token] / tree.q[node][token]))):
                return Verdict(tuple(range(node)), (*tree.tokens[:node], coins.categorical(residual(p[node], tree.q[node]))))
        return Verdict(tuple(range(len(tree.tokens))), (*tree.tokens, coins.categorical(p[-1])))


def favouring(favour, claim="sampling-exact"):
    return Favouring("favouring", frozenset({Contract.NONE, IID}), claim, "probabilities", ratio, True, favour)


@pytest.fixture
def registered(monkeypatch):
    """register(rule) for the duration of a test."""
    monkeypatch.setattr(rule_module, "RULES", dict(RULES))
    return rule_module.register


def test_a_plugins_rule_is_enumerated_as_any_other(registered):
    registered(favouring(1.0))
    assert get_rule("favouring").judge.__func__ is Favouring.judge
    assert not broken_claims(get_rule("favouring"))
    with pytest.raises(AssertionError, match="two rules are named favouring"):
        registered(favouring(2.0))


@pytest.mark.parametrize("favour", [0.5, 1.2])
def test_a_plugins_faulty_rule_is_found(registered, favour):
    registered(favouring(favour))
    found = broken_claims(get_rule("favouring"))
    assert max(found.values()) > WRONG and any("any" in where for where in found), found


def test_a_rule_that_is_wrong_on_trees_alone_is_found(registered):
    """Match that follows the last of the siblings that stand: on chains it is right."""

    def last_sibling(tree, choice):
        verdict = match(tree, choice)
        if tree.parents is None or not verdict.path:
            return verdict
        return Verdict(verdict.path[:1], (verdict.tokens[0], choice[-1]))

    registered(Rule("last_sibling", RULES["sample_match"].accepts, "sampling-exact", "choice", last_sibling))
    found = broken_claims(get_rule("last_sibling"))
    assert found and all("[2" in where for where in found), found


def test_a_greedy_claim_is_looked_at_where_the_target_is_greedy(registered):
    accepts = RULES["greedy_match"].accepts
    registered(Rule("mine", accepts, "greedy-exact", "choice", match))
    assert not broken_claims(get_rule("mine"))
    off = registered(Rule("off", accepts, "greedy-exact", "choice", lambda tree, choice: match(tree, [1, *choice[1:]])))
    assert broken_claims(get_rule("off")) and not broken_claims(replace(off, claim="lossy")), "lossy claims nothing"


# --- how much is accepted ---------------------------------------------------------------------------------------------------


def acceptance(target, draft, drafter, rule):
    """The probability that a child of the root stands."""

    def body(rng):
        tree = drafter(draft, rng)
        p = torch.stack([target.after(())] * (len(tree.tokens) + 1))
        return rule(tree, p, rng).num_accepted > 0

    return sum(mass for mass, accepted in branches(body) if accepted)


def test_acceptance_probabilities():
    for seed in range(4):
        target, draft = Language(seed, vocab_size=4), Language(seed + 50, vocab_size=4)
        p, q = target.after(()), draft.after(())
        overlap = torch.minimum(p, q).sum().item()
        one = drawn_tree([1], IID)
        for rule in (ratio, k_seq, recursive_with_replacement, recursive_without_replacement):
            assert acceptance(target, draft, one, rule) == pytest.approx(overlap, abs=1e-9), "1 - total variation"
        for k in (2, 3):
            several = drawn_tree([k], IID)
            recursive, sequential = (acceptance(target, draft, several, rule) for rule in (recursive_with_replacement, k_seq))
            bound = sum(min(p[x].item(), 1 - (1 - q[x].item()) ** k) for x in range(4))  # any rule on k i.i.d. candidates
            assert overlap - 1e-9 <= recursive <= bound + 1e-9
            assert recursive - 1e-9 <= sequential <= bound + 1e-9
            assert sequential >= (1 - 1 / math.e) * bound - 1e-9, "SpecTr's guarantee"
        best = q.topk(2).indices
        assert acceptance(target, draft, best_tree([2]), delta) == pytest.approx(p[best].sum().item(), abs=1e-9)
        assert acceptance(target, draft, best_tree([2]), with_draws(match)) == pytest.approx(p[best].sum().item(), abs=1e-9)


# --- lockstep: the whole schedule -------------------------------------------------------------------------------------------


def pearl_tokens(target, draft, rng, length, block, rule=lockstep_ratio):
    """PEARL in one process: pre-verify one token, post-verify the leftovers and the new block's first; no bonus."""
    done, leftovers = [], []
    while len(done) < length:
        new = []
        for _ in range(block):
            new.append(rng.categorical(draft.after([*done, *leftovers, *new])))
        window = [*leftovers, new[0]]
        q = [draft.after([*done, *window[:i]]) for i in range(len(window))]
        p = torch.stack([target.after([*done, *window[:i]]) for i in range(len(window))])
        verdict = rule(DraftTree(window, None, IID, q), p, rng)
        done += verdict.tokens
        leftovers = new[1:] if len(verdict.path) == len(window) and len(verdict.tokens) == len(window) else []
    return tuple(done[:length])


def pearl_law(target, draft, length, block, rule=lockstep_ratio):
    law = {}
    for mass, tokens in branches(lambda rng: pearl_tokens(target, draft, rng, length, block, rule)):
        law[tokens] = law.get(tokens, 0.0) + mass
    return law


def test_the_lockstep_schedule_keeps_the_law():
    for seed in range(2):
        target, draft = Language(seed, vocab_size=2), Language(seed + 9, vocab_size=2)
        assert worst_error(pearl_law(target, draft, 3, 2), law_of(target, 3)) < EXACT


def test_a_lockstep_schedule_that_keeps_leftovers_it_should_not_is_caught():
    def forgiving(tree, p, rng):  # the last token of a window stands whatever the target says
        verdict = lockstep_ratio(tree, p, rng)
        full = Verdict(tuple(range(len(tree.tokens))), tuple(tree.tokens))
        return full if verdict.num_accepted == len(tree.tokens) - 1 else verdict

    target, draft = Language(1, vocab_size=2), Language(10, vocab_size=2)
    assert worst_error(pearl_law(target, draft, 3, 2, forgiving), law_of(target, 3)) > WRONG
