"""Known wrong acceptance rules: the enumeration that the right ones pass catches every one of them."""

import pytest
import torch
from law_tools import (
    EXACT,
    PAIRS,
    WRONG,
    EnumeratingRng,
    Language,
    best_tree,
    branches,
    drawn_tree,
    law_of,
    round_error,
    round_law,
    with_draws,
    worst_error,
)

from specbench.engine.sampling import SamplingLaw
from specbench.engine.tree import Contract, DraftTree, Verdict
from specbench.parts.rules.chain import residual
from specbench.parts.rules.rule import (
    delta,
    k_seq,
    lockstep_ratio,
    match,
    ratio,
    recursive_with_replacement,
    recursive_without_replacement,
    typical,
)

IID, WITHOUT, FIXED = Contract.IID, Contract.WITHOUT_REPLACEMENT, Contract.FIXED_SET


def test_the_token_after_a_fully_accepted_round_and_the_second_position():
    target, draft = PAIRS["any"](51)
    law = round_law(target, draft, drawn_tree([1, 1], IID), ratio, 3)
    truth = law_of(target, 3)

    def bonus_from_q(tree, p, rng):
        last = torch.cat([p[:-1], draft.after(tree.tokens)[None]])
        return ratio(tree, last, rng)

    def bonus_from_the_row_before(tree, p, rng):
        return ratio(tree, torch.cat([p[:-1], p[-2:-1]]), rng)

    def second_residual_from_p(tree, p, rng):
        verdict = ratio(tree, p, rng)
        return Verdict(verdict.path, (*verdict.tokens[:-1], rng.categorical(p[1]))) if verdict.num_accepted == 1 else verdict

    def second_position_uses_the_first_row(tree, p, rng):
        return ratio(tree, torch.cat([p[:1], p[:1], p[2:]]), rng)

    def at(law, position):  # the law of one position, given what stands before it
        return {s: sum(m for t, m in law.items() if t[: position + 1] == s) for s in {t[: position + 1] for t in law}}

    for position in range(3):
        assert worst_error(at(law, position), at(truth, position)) < EXACT
    for wrong, position in [
        (bonus_from_q, 2),
        (bonus_from_the_row_before, 2),
        (second_residual_from_p, 1),
        (second_position_uses_the_first_row, 1),
    ]:
        off = round_law(target, draft, drawn_tree([1, 1], IID), wrong, 3)
        assert worst_error(at(off, position - 1), at(truth, position - 1)) < EXACT, "the fault is where it is looked for"
        assert worst_error(at(off, position), at(truth, position)) > WRONG


def test_following_the_luckier_of_two_equal_siblings_is_biased_and_caught():
    def two_chains(language, rng):
        return DraftTree([0, 1, 0, 1], [-1, 0, -1, 2])

    def luckiest(tree, choice):
        first = match(DraftTree([0, 1]), choice[:3])
        second = match(DraftTree([0, 1]), [choice[0], *choice[3:]])
        if first.num_accepted >= second.num_accepted:
            return first
        return Verdict(tuple(node + 2 for node in second.path), second.tokens)

    target = Language(71)
    assert round_error(target, target, two_chains, with_draws(match), 3) < EXACT
    assert round_error(target, target, two_chains, with_draws(luckiest), 3) > WRONG


def unrenormalised_q(tree, p, rng):
    """Siblings drawn without replacement, tested against the q of the first draw."""
    row, q = p[0], tree.q[0]
    for node, token in enumerate(tree.tokens):
        if rng.bernoulli(min(1.0, (row[token] / q[token]).item())):
            return Verdict((node,), (token, rng.categorical(p[node + 1])))
        row = residual(row, q)
    return Verdict((), (rng.categorical(row),))


def per_path_nucleus(tree, p, rng):
    """Every path draws its own sample; when none matches, the next token is drawn afresh from p."""
    for node, token in enumerate(tree.tokens):
        if rng.categorical(p[0]) == token:
            return Verdict((node,), (token, rng.categorical(p[node + 1])))
    return Verdict((), (rng.categorical(p[0]),))


def drop_unlikely(drafter, least):
    """The drafted token is thrown away after it was drawn, because the draft gave it little."""

    def draft(language, rng):
        tree = drafter(language, rng)
        return tree if tree.q[0][tree.tokens[0]] >= least else DraftTree([])

    return draft


def prune_unlikely(drafter, keep):
    """Siblings are drawn, then only the likeliest are kept, likeliest first."""

    def draft(language, rng):
        tree = drafter(language, rng)
        kept = sorted(tree.tokens, key=lambda token: -tree.q[0][token].item())[:keep]
        return DraftTree(kept, [-1] * keep, tree.contract, tree.q[:keep])

    return draft


def sort_siblings(drafter):
    """All siblings are kept, but tried by token id and not in draw order."""

    def draft(language, rng):
        tree = drafter(language, rng)
        return DraftTree(sorted(tree.tokens), [-1] * len(tree.tokens), tree.contract, tree.q)

    return draft


def resample_from_p(tree, p, rng):
    """A rejection is followed by a draw from p instead of the residual."""
    verdict = ratio(tree, p, rng)
    if verdict.num_accepted < len(tree.tokens):
        return Verdict(verdict.path, (*verdict.tokens[:-1], rng.categorical(p[verdict.num_accepted])))
    return verdict


def delta_without_zeroing(tree, p, rng):
    """Children tried with their plain probability, the rest drawn from p with the last one still in."""
    for node, token in enumerate(tree.tokens):
        if rng.bernoulli(p[0][token].item()):
            return Verdict((node,), (token, rng.categorical(p[node + 1])))
    return Verdict((), (rng.categorical(p[0]),))


def k_seq_with_ratio_residual(tree, p, rng):
    """k-SEQ's candidates tested with rho = 1: accepts too much for its residual to make good."""
    row, q = p[0], tree.q[0]
    for node, token in enumerate(tree.tokens):
        if rng.bernoulli(min(1.0, (row[token] / q[token]).item())):
            return Verdict((node,), (token, rng.categorical(p[node + 1])))
    return Verdict((), (rng.categorical(residual(row, q)),))


WRONG_VARIANTS = {
    "q not renormalised after a draw": (drawn_tree([3], WITHOUT), unrenormalised_q),
    "deterministic children under recursive_without_replacement": (best_tree([2], WITHOUT), recursive_without_replacement),
    "deterministic children under recursive_with_replacement": (best_tree([2], IID), recursive_with_replacement),
    "deterministic children under k_seq": (best_tree([2], IID), k_seq),
    "argmax draft with softmax q under ratio": (best_tree([1], IID), ratio),
    "argmax chain with softmax q under lockstep_ratio": (best_tree([1, 1], IID), lockstep_ratio),
    "per-path nucleus matching, one path": (best_tree([1]), per_path_nucleus),
    "per-path nucleus matching, three paths": (best_tree([3]), per_path_nucleus),
    "typical acceptance": (best_tree([2]), typical),
    "a just drawn token dropped": (drop_unlikely(drawn_tree([1], IID), 0.3), ratio),
    "drawn siblings pruned": (prune_unlikely(drawn_tree([3], WITHOUT), 2), recursive_without_replacement),
    "siblings not in draw order": (sort_siblings(drawn_tree([2], WITHOUT)), recursive_without_replacement),
    "siblings drawn without replacement under the i.i.d. rule": (drawn_tree([2], WITHOUT), recursive_with_replacement),
    "resampling from p": (drawn_tree([1], IID), resample_from_p),
    "delta without zeroing": (best_tree([2]), delta_without_zeroing),
    "k_seq with rho = 1": (drawn_tree([2], IID), k_seq_with_ratio_residual),
    "greedy matching at temperature 1": (best_tree([1]), lambda tree, p, rng: match(tree, p.argmax(-1).tolist())),
}


@pytest.mark.parametrize("name", WRONG_VARIANTS)
def test_known_wrong_variants_are_caught(name):
    drafter, rule = WRONG_VARIANTS[name]
    errors = []
    for seed in range(6):
        target, draft = Language(seed + 100, vocab_size=4), Language(seed + 200, vocab_size=4)
        errors.append(round_error(target, draft, drafter, rule, 2))
    assert max(errors) > 10 * WRONG, errors
    assert sum(error > WRONG for error in errors) >= 4, errors


def test_the_plain_forms_of_the_wrong_variants_pass():
    """Nothing but the fault makes the tests above fail."""
    for seed in range(6):
        target, draft = Language(seed + 100, vocab_size=4), Language(seed + 200, vocab_size=4)
        assert round_error(target, draft, drawn_tree([3], WITHOUT), recursive_without_replacement, 2) < EXACT
        assert round_error(target, draft, drawn_tree([2], IID), k_seq, 2) < EXACT
        assert round_error(target, draft, best_tree([3]), delta, 2) < EXACT
        assert round_error(target, draft, drawn_tree([1], IID), ratio, 2) < EXACT


def test_stopping_before_a_draw_is_exact():
    """Twin of the dropped token: a length policy that decides by what came before."""

    def draft_while_sure(language, rng):
        tokens, laws = [], []
        while len(tokens) < 2 and language.after(tokens).max() > 0.45:
            laws.append(language.after(tokens))
            tokens.append(rng.categorical(laws[-1]))
        return DraftTree(tokens, None, IID, laws)

    for seed in range(6):
        target, draft = PAIRS["any"](seed)
        assert round_error(target, draft, draft_while_sure, ratio, 3) < EXACT


# --- the tools themselves ---------------------------------------------------------------------------------------------------


def test_branches_enumerate_every_way_once():
    def body(rng):
        first = rng.categorical(torch.tensor([0.2, 0.0, 0.8], dtype=torch.float64))
        return (first, rng.bernoulli(0.25)) if first else (first,)

    found = {result: probability for probability, result in branches(body)}
    assert found == pytest.approx({(0,): 0.2, (2, False): 0.6, (2, True): 0.2})
    assert next(iter(branches(lambda rng: "no coin"))) == (1.0, "no coin")


def test_the_enumerating_rng_refuses_what_is_no_law():
    with pytest.raises(AssertionError):
        EnumeratingRng().bernoulli(1.5)
    with pytest.raises(AssertionError):
        EnumeratingRng().categorical(torch.tensor([0.5, 0.4]).double())


def test_the_target_against_itself_has_no_error_and_another_has():
    assert worst_error(law_of(Language(1), 3), law_of(Language(1), 3)) == 0.0
    assert worst_error(law_of(Language(1), 3), law_of(Language(2), 3)) > WRONG
    assert sum(law_of(Language(1, law=SamplingLaw(0.7, top_p=0.6)), 3).values()) == pytest.approx(1.0)
