"""Exact acceptance rules on trees: at every node the children are tried in sibling order, then one token is drawn.

All of them share one walk. Siblings with equal tokens count as one node once that token is accepted (drawn i.i.d. they
happen; a merged set of retrieved chains has them too): the walk goes on below all of them at once. That keeps the law, for
how many candidates meet at a node depends only on tokens above it.

These rules are exact on the condition that no drawn token was dropped, and no order changed, because of its value.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from specbench.engine.tree import DraftTree, Verdict
from specbench.parts.rules.chain import path_to, residual
from specbench.parts.rules.coins import RuleRng

# (p [V], q [V] or None, the candidates' tokens, rng) -> the accepted token, or None and the law of the target's own token
NodeRule = Callable[[Tensor, "Tensor | None", list[int], RuleRng], "tuple[int | None, Tensor]"]


def delta(tree: DraftTree, p: Tensor, rng: RuleRng) -> Verdict:
    """Children as given, q treated as 1: each stands with the probability that the target gives it among what is left.

    p [N + 1, V]. A rejected token is zeroed and p renormalised. In law the same as following one draw of the target's
    (sample_match), so it is exact however the children were chosen, as long as the choice did not look at this rng.
    """
    return _walk(tree, p, rng, _delta_node)


def recursive_with_replacement(tree: DraftTree, p: Tensor, rng: RuleRng) -> Verdict:
    """Recursive rejection over siblings drawn i.i.d. from q (multi-step speculative sampling: SpecInfer, Miao et al. 2023).

    p [N + 1, V]. Child x stands with probability min(1, p/q); on a rejection p becomes norm(max(p - q, 0)) for the next one.
    """
    return _walk(tree, p, rng, _recursive_with_replacement_node)


def recursive_without_replacement(tree: DraftTree, p: Tensor, rng: RuleRng) -> Verdict:
    """Recursive rejection over siblings drawn without replacement, in draw order (RSD, Jeon et al. 2024; Sequoia; DySpec).

    p [N + 1, V]. As with replacement, and after a rejection q loses the rejected token and is renormalised, since the next
    sibling was drawn from what was left.
    """
    return _walk(tree, p, rng, _recursive_without_replacement_node)


def k_seq(tree: DraftTree, p: Tensor, rng: RuleRng) -> Verdict:
    """k-sequential selection over k i.i.d. candidates (SpecTr, Sun et al. 2023, algorithm 3).

    p [N + 1, V]. The first candidate x that passes a coin of min(1, p / (rho q)) stands; k counts draws, duplicates included.
    K chains under the root are walked together: the candidates at a node are the next tokens of all chains that agree so far.
    """
    return _walk(tree, p, rng, _k_seq_node)


def _walk(tree: DraftTree, p: Tensor, rng: RuleRng, node_rule: NodeRule) -> Verdict:
    children = tree.children()
    here = [-1]  # the nodes whose tokens from the root down equal what was accepted
    tokens: list[int] = []
    while True:
        row = p[here[0] + 1].double()
        row = row / row.sum()
        candidates = [child for node in here for child in children[node + 1]]
        accepted: int | None = None
        law = row
        if candidates:
            q = None if tree.q is None else tree.q[candidates[0]].double()
            q = None if q is None else q / q.sum()
            accepted, law = node_rule(row, q, [tree.tokens[node] for node in candidates], rng)
        if accepted is None:
            tokens.append(rng.categorical(law))
            return Verdict(path_to(tree, here[0]), tuple(tokens))
        tokens.append(accepted)
        here = [node for node in candidates if tree.tokens[node] == accepted]


def _delta_node(p: Tensor, q: Tensor | None, tokens: list[int], rng: RuleRng) -> tuple[int | None, Tensor]:
    distinct = list(dict.fromkeys(tokens))
    index = torch.tensor(distinct, device=p.device)
    rest = p.index_fill(0, index, 0.0)
    *masses, rest_mass = torch.cat([p[index], rest.sum()[None]]).tolist()
    for i, token in enumerate(distinct):
        # Summed afresh rather than subtracted: children that hold all the mass are then accepted with probability 1 exactly.
        left = math.fsum([rest_mass, *masses[i:]])
        if rng.bernoulli(masses[i] / left if masses[i] > 0 else 0.0):
            return token, p
    return None, rest / rest_mass


def _recursive_with_replacement_node(p: Tensor, q: Tensor | None, tokens: list[int], rng: RuleRng) -> tuple[int | None, Tensor]:
    assert q is not None, "ratio-type rules need the draft's distributions"
    for token in tokens:
        if rng.bernoulli(_ratio_at(p, q, token)):
            return token, p
        p = residual(p, q)
    return None, p


def _recursive_without_replacement_node(
    p: Tensor, q: Tensor | None, tokens: list[int], rng: RuleRng
) -> tuple[int | None, Tensor]:
    assert q is not None, "ratio-type rules need the draft's distributions"
    for token in tokens:
        if rng.bernoulli(_ratio_at(p, q, token)):
            return token, p
        p = residual(p, q)
        q = q.index_fill(0, torch.tensor([token], device=q.device), 0.0)
        q = q / q.sum()  # not a number when nothing is left to draw: _ratio_at refuses a sibling that claims otherwise
    return None, p


def _ratio_at(p: Tensor, q: Tensor, token: int) -> float:
    p_token, q_token = torch.stack([p[token], q[token]]).tolist()
    assert q_token > 0, f"token {token} was drawn from a law that gives it probability 0"
    return min(1.0, p_token / q_token)


def _k_seq_node(p: Tensor, q: Tensor | None, tokens: list[int], rng: RuleRng) -> tuple[int | None, Tensor]:
    assert q is not None, "ratio-type rules need the draft's distributions"
    rho = _k_seq_rho(p, q, len(tokens))
    index = torch.tensor(tokens, device=p.device)
    for token, (p_token, q_token) in zip(tokens, torch.stack([p[index], q[index]], dim=1).tolist(), strict=True):
        assert q_token > 0, f"token {token} was drawn from a law that gives it probability 0"
        if rng.bernoulli(min(1.0, p_token / (rho * q_token))):
            return token, p
    kept = torch.minimum(q, p / rho)  # a candidate is x and passes with probability kept[x]
    beta = kept.sum().item()
    # Over the k candidates x was accepted with probability kept[x] * passed / beta; what that lacks to p is drawn now.
    return None, residual(p, kept * (_some_pass(beta, len(tokens)) / beta if beta > 0 else 0.0))


def _some_pass(beta: float, k: int) -> float:
    """1 - (1 - beta)^k, also for small beta."""
    return -math.expm1(k * math.log1p(-beta)) if beta < 1.0 else 1.0


def _k_seq_rho(p: Tensor, q: Tensor, k: int) -> float:
    """The smallest rho in [1, k] (to a millionth of k) with 1 - (1 - beta)^k <= rho * beta, beta(rho) = sum min(q, p / rho).

    Any rho that meets the inequality keeps the rule exact (the residual is then nowhere negative); the smallest accepts most.
    """
    if k == 1:
        return 1.0
    low, high = 1.0, float(k)
    for _ in range(20):
        middle = (low + high) / 2
        beta = torch.minimum(q, p / middle).sum().item()
        if _some_pass(beta, k) <= middle * beta:
            high = middle
        else:
            low = middle
    return high
