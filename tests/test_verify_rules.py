"""The acceptance rules case by case: certain outcomes, match, typical acceptance, contracts."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from law_tools import (
    EXACT,
    PAIRS,
    WRONG,
    Language,
    best_tree,
    drawn_tree,
    round_error,
    with_draws,
)

from specbench.config.options import ConfigError
from specbench.engine.sampling import SamplingLaw
from specbench.engine.tree import EMPTY, Contract, DraftTree, Evidence, Verdict
from specbench.parts.rules.chain import residual
from specbench.parts.rules.rule import (
    RULES,
    TorchRng,
    check_contract,
    get_rule,
    k_seq,
    lockstep_ratio,
    match,
    ratio,
    recursive_with_replacement,
    recursive_without_replacement,
    typical,
)

IID, WITHOUT, FIXED = Contract.IID, Contract.WITHOUT_REPLACEMENT, Contract.FIXED_SET


def chain_of(tokens, q):
    return DraftTree(tokens, None, IID, torch.tensor(q))


class Forbidden:
    """An rng whose coins must fall one way: for distributions where nothing is left to chance."""

    def __init__(self):
        self.coins = []

    def bernoulli(self, probability):
        assert probability in (0.0, 1.0), probability
        self.coins.append(probability)
        return probability == 1.0

    def categorical(self, probabilities):
        assert probabilities.max().item() == pytest.approx(1.0), probabilities
        return int(probabilities.argmax())


@pytest.mark.parametrize("rule", [ratio, lockstep_ratio, recursive_with_replacement, recursive_without_replacement, k_seq])
def test_certain_cases(rule):
    sure = [0.0, 1.0, 0.0]
    p = torch.tensor([sure, [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    # p = q, one point: everything stands.
    verdict = rule(chain_of([1, 2], [sure, [0.0, 0.0, 1.0]]), p, Forbidden())
    assert verdict.path == (0, 1) and verdict.tokens[:2] == (1, 2)
    assert verdict.tokens[2:] == (() if rule is lockstep_ratio else (0,))
    # The target gives the drafted token probability 0: it never stands, and the residual is what the target wants.
    assert rule(chain_of([0], [[1.0, 0.0, 0.0]]), p, Forbidden()) == Verdict((), (1,))
    assert rule(chain_of([1, 0], [sure, [0.5, 0.5, 0.0]]), p, Forbidden()) == Verdict((0,), (1, 2))


@pytest.mark.parametrize("rule", [ratio, lockstep_ratio, recursive_with_replacement, recursive_without_replacement, k_seq])
def test_a_token_that_q_could_not_have_drawn_is_a_fault_of_the_draft(rule):
    p = torch.full((2, 3), 1 / 3)
    with pytest.raises(AssertionError, match="probability 0"):
        rule(chain_of([0], [[0.0, 0.5, 0.5]]), p, TorchRng.seeded(0))


def test_a_sibling_drawn_from_an_empty_rest_is_a_fault_of_the_draft():
    """Second siblings where the first one took all of q; twin: the same children without the second are fine."""
    q = [torch.tensor([1.0, 0.0])] * 2
    p = torch.tensor([[1e-9, 1.0]] + [[0.5, 0.5]] * 2)
    with pytest.raises(AssertionError, match="probability 0"):
        recursive_without_replacement(DraftTree([0, 0], [-1, -1], WITHOUT, q), p, TorchRng.seeded(0))
    assert recursive_without_replacement(DraftTree([0], [-1], WITHOUT, q[:1]), p, TorchRng.seeded(0)).tokens == (1,)


def test_residual_of_equal_laws_is_the_law_itself():
    p = torch.tensor([0.25, 0.75], dtype=torch.float64)
    assert torch.equal(residual(p, p.clone()), p)
    assert torch.allclose(residual(p, torch.tensor([0.75, 0.25]).double()), torch.tensor([0.0, 1.0]).double())


@pytest.mark.parametrize("name", [name for name in RULES if RULES[name].reads == "probabilities"])
def test_rules_leave_their_inputs_alone(name):
    target, draft = PAIRS["any"](61)
    rule = RULES[name]
    contract = WITHOUT if WITHOUT in rule.accepts else IID
    tree = drawn_tree([1, 1] if rule.chain_only else [2, 1], contract)(draft, TorchRng.seeded(1))
    p = torch.stack([target.after(()) for _ in range(len(tree.tokens) + 1)])
    before = p.clone(), torch.stack(list(tree.q)).clone(), list(tree.tokens)
    for seed in range(20):
        rule.function(tree, p, TorchRng.seeded(seed))
    assert torch.equal(p, before[0]) and torch.equal(torch.stack(list(tree.q)), before[1])
    assert tree.tokens == before[2]


def test_q_may_be_one_tensor_and_of_lower_precision():
    target, draft = PAIRS["any"](62)
    tree = drawn_tree([1, 1], IID)(draft, TorchRng.seeded(1))
    single = DraftTree(tree.tokens, None, IID, torch.stack(list(tree.q)).float())
    p = torch.stack([target.after(tree.tokens[:depth]) for depth in range(3)])
    for seed in range(20):
        assert ratio(single, p.float(), TorchRng.seeded(seed)) == ratio(tree, p, TorchRng.seeded(seed))


@pytest.mark.parametrize("rule", [ratio, lockstep_ratio])
def test_chain_rules_refuse_trees(rule):
    tree = DraftTree([0, 1], [-1, -1], IID, torch.full((2, 3), 1 / 3))
    with pytest.raises(ValueError, match="recursive_with_replacement"):
        rule(tree, torch.full((3, 3), 1 / 3), TorchRng.seeded(0))


# --- match ------------------------------------------------------------------------------------------------------------------


def test_match_on_chains():
    chain = DraftTree([5, 6, 7])
    assert match(chain, [5, 6, 7, 8]) == Verdict((0, 1, 2), (5, 6, 7, 8))
    assert match(chain, [5, 6, 1, 8]) == Verdict((0, 1), (5, 6, 1))
    assert match(chain, [4, 6, 7, 8]) == Verdict((), (4,))
    assert match(EMPTY, [4]) == Verdict((), (4,))


def test_match_on_trees():
    tree = DraftTree([5, 6, 7, 8, 9], [-1, -1, 0, 1, 1])
    assert match(tree, [6, 0, 9, 0, 0, 3]) == Verdict((1, 4), (6, 9, 3))
    assert match(tree, [5, 7, 0, 2, 0, 0]) == Verdict((0, 2), (5, 7, 2))
    assert match(tree, [5, 8, 0, 0, 0, 0]) == Verdict((0,), (5, 8)), "a child of another node does not count"
    assert match(tree, [7, 0, 0, 0, 0, 0]) == Verdict((), (7,))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), size=st.integers(0, 8))
def test_match_finds_the_longest_path_of_a_deterministic_target(data, size):
    """Against the definition: the node whose whole path the target would have written, as deep as possible."""
    tokens = [data.draw(st.integers(0, 2)) for _ in range(size)]
    parents = [data.draw(st.integers(-1, node - 1)) for node in range(size)]
    tree = DraftTree(tokens, parents)
    written = {}  # the target's token after each prefix

    def target(prefix):
        return written.setdefault(prefix, data.draw(st.integers(0, 2)))

    def prefix(node):
        return () if node < 0 else (*prefix(parents[node]), tokens[node])

    choice = [target(prefix(node)) for node in range(-1, size)]
    verdict = match(tree, choice)
    continuation = ()
    while len(continuation) <= size:
        continuation = (*continuation, target(continuation))
    standing = [node for node in range(size) if prefix(node) == continuation[: len(prefix(node))]]
    assert verdict.num_accepted == max((len(prefix(node)) for node in standing), default=0)
    assert verdict.tokens == continuation[: verdict.num_accepted + 1]
    assert all(node in standing for node in verdict.path)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_walk_that_asks_row_by_row_finds_what_all_rows_say(temperature):
    """Logits on the CPU are asked for where the walk comes by, with the noise of that row's depth."""
    law, generator = SamplingLaw(temperature, top_p=0.9), torch.Generator().manual_seed(0)
    rule, depths = get_rule("sample_match"), set()
    for key in range(40):
        parents = [-1, -1, 0, 0, 1, 1, 2, 3, 5]
        logits = torch.randn((10, 3), generator=generator)
        tree = DraftTree(torch.randint(3, (9,), generator=generator).tolist(), parents)
        verdict = rule.judge(tree, Evidence(logits, {}), law, 7, key, None)
        assert verdict == match(tree, law.choose(logits, [7, *(7 + depth for depth in tree.depths())], key))
        depths.add(verdict.num_accepted)
    assert depths == {0, 1, 2, 3}


# --- typical acceptance -----------------------------------------------------------------------------------------------------


def test_typical_acceptance_follows_its_definition():
    p = torch.tensor([[0.6, 0.3, 0.1], [0.05, 0.05, 0.9], [0.2, 0.4, 0.4], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    tree = DraftTree([0, 1, 2, 2], [-1, -1, 0, 1])
    entropy = -(p[0] * p[0].log()).sum().item()
    threshold = min(0.09, 0.3 * math.exp(-entropy))
    assert p[0, 0] > threshold and p[0, 1] > threshold
    # Both paths stand to depth 2; 0.6 * 0.9 beats 0.3 * 0.4.
    assert typical(tree, p, Forbidden()) == Verdict((0, 2), (0, 2, 0))
    mirrored = DraftTree([1, 0, 2, 2], [-1, -1, 0, 1])
    assert typical(mirrored, p[[0, 2, 1, 3, 4]], Forbidden()) == Verdict((1, 3), (0, 2, 0))
    # A higher bar leaves only the first child of the first node, and then none.
    assert typical(DraftTree([1]), p[:2], TorchRng.seeded(0), epsilon=0.31, delta=10.0).num_accepted == 0
    assert typical(DraftTree([0]), p[:2], TorchRng.seeded(0), epsilon=0.31, delta=10.0).num_accepted == 1
    # A longer path wins over a likelier short one; a node below a fallen one does not stand.
    deeper = DraftTree([0, 1, 0], [-1, -1, 1])
    rows = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4], [0.8, 0.1, 0.1], [0.0, 0.0, 1.0]])
    assert typical(deeper, rows, Forbidden()) == Verdict((1, 2), (1, 0, 2))
    rows[0] = torch.tensor([0.999, 0.001, 0.0])
    assert typical(deeper, rows, TorchRng.seeded(0)).path == (0,)


def test_typical_acceptance_at_temperature_zero_is_greedy_matching():
    target, draft = PAIRS["greedy target"](81)
    assert round_error(target, draft, best_tree([2, 1]), typical, 3) < EXACT


@pytest.mark.parametrize("options", [{"epsilon": 0.0}, {"epsilon": 1.0}, {"delta": 0.0}, {"delta": math.inf}])
def test_typical_acceptance_checks_its_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        typical(EMPTY, torch.ones(1, 1), TorchRng.seeded(0), **options)


# --- contracts --------------------------------------------------------------------------------------------------------------

ACCEPTED = {
    "greedy_match": {FIXED, IID, WITHOUT},
    "sample_match": {FIXED, IID, WITHOUT},
    "delta": {FIXED, IID, WITHOUT},
    "ratio": {IID, WITHOUT},
    "recursive_with_replacement": {IID},
    "recursive_without_replacement": {WITHOUT},
    "k_seq": {IID},
    "lockstep_ratio": {IID, WITHOUT},
    "typical": {FIXED, IID, WITHOUT},
}


def test_every_rule_says_what_it_accepts():
    assert {name: set(rule.accepts) for name, rule in RULES.items()} == {n: c | {Contract.NONE} for n, c in ACCEPTED.items()}
    assert all(name == rule.name for name, rule in RULES.items())
    assert {name for name, rule in RULES.items() if rule.claim == "lossy"} == {"typical"}
    assert {name for name, rule in RULES.items() if rule.reads == "choice"} == {"greedy_match", "sample_match"}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("contract", list(Contract))
def test_a_draft_that_does_not_fit_is_refused_by_both_names(name, contract):
    rule = get_rule(name)
    if contract in ACCEPTED[name] or contract is Contract.NONE:
        check_contract(rule, contract)
    else:
        with pytest.raises(ValueError, match=rf"rule {name} .*contract {contract.value}") as error:
            check_contract(rule, contract)
        assert "sample_match" in str(error.value), "the remedy"


@pytest.mark.parametrize("name", ["ratoi", "", None, ["ratio"]])
def test_an_unknown_rule_lists_what_there_is(name):
    with pytest.raises(ConfigError, match="sample_match") as error:
        get_rule(name)
    assert error.value.key == "method.rule"


@pytest.mark.parametrize("name", [name for name in RULES if RULES[name].claim == "sampling-exact"])
def test_refused_contracts_are_refused_with_reason(name):
    """Each refused combination of a rule and a drafter really breaks the law (and none that is accepted does)."""
    rule = RULES[name]
    function = with_draws(rule.function) if rule.reads == "choice" else rule.function
    shape = [1] if rule.chain_only else [2]
    drafters = {IID: drawn_tree(shape, IID), WITHOUT: drawn_tree(shape, WITHOUT)}
    drafters[FIXED] = best_tree(shape, None if FIXED in rule.accepts else IID)
    for contract, drafter in drafters.items():
        errors = []
        for seed in range(4):
            target, draft = Language(seed, vocab_size=4, spread=1.0), Language(seed + 300, vocab_size=4, spread=1.0)
            try:
                errors.append(round_error(target, draft, drafter, function, 2))
            except AssertionError as fault:  # i.i.d. duplicates cannot have been drawn without replacement
                assert "probability 0" in str(fault)
                errors.append(1.0)
        if contract in rule.accepts:
            assert max(errors) < EXACT, contract
        else:
            assert max(errors) > WRONG, contract
