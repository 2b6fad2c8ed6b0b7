"""Acceptance rules that need no tree search: matching against the target's own tokens, and the ratio test on chains."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specbench.engine.tree import DraftTree, Verdict
from specbench.parts.rules.coins import RuleRng


def match(tree: DraftTree, choice: Sequence[int]) -> Verdict:
    """Follow the child that equals the target's own token at every node (greedy_match and sample_match).

    choice [N + 1]: the target's token after the root and after each node, an argmax or ONE draw per node. Siblings with equal
    tokens count as one node: its choice is that of the first of them reached in index order (never the luckier one, which
    would bias the output), its children are all of theirs.
    """
    if tree.parents is None:
        accepted = 0
        for token in tree.tokens:
            if choice[accepted] != token:
                break
            accepted += 1
        return Verdict(tuple(range(accepted)), tuple(choice[: accepted + 1]))
    depth_reached = {-1: 0}
    wanted = [choice[0]]  # wanted[d]: the target's token below the nodes reached at depth d
    deepest = -1
    for node, parent in enumerate(tree.parents):  # parents come before their children: one pass is enough
        depth = depth_reached.get(parent)
        if depth is None or tree.tokens[node] != wanted[depth]:
            continue
        depth_reached[node] = depth + 1
        if depth + 1 == len(wanted):
            wanted.append(choice[node + 1])
            deepest = node
    return Verdict(path_to(tree, deepest), tuple(wanted))


def path_to(tree: DraftTree, node: int) -> tuple[int, ...]:
    """Node indices from below the root down to `node`; empty for the root (-1)."""
    path: list[int] = []
    while node >= 0:
        path.append(node)
        node = tree.parent(node)
    return tuple(reversed(path))


def ratio(tree: DraftTree, p: Tensor, rng: RuleRng) -> Verdict:
    """Speculative sampling on a chain (Leviathan et al. 2023, algorithm 1; Chen et al. 2023, algorithm 2).

    p [N + 1, V]; tree.q[i] [V] is the law that node i was drawn from. Node i stands with probability min(1, p/q) of its token;
    the first that falls is replaced by a draw from norm(max(p - q, 0)); if all stand, a bonus is drawn from p[N].
    Raises ValueError when the draft is not a chain.
    """
    accepted = _accepted_prefix(tree, p, rng, "ratio")
    law = p[accepted].double() if accepted == len(tree.tokens) else residual(p[accepted], _q(tree, accepted))
    return Verdict(tuple(range(accepted)), (*tree.tokens[:accepted], rng.categorical(law)))


def lockstep_ratio(tree: DraftTree, p: Tensor, rng: RuleRng) -> Verdict:
    """The ratio test without a bonus, for windows that a schedule shifts along the draft (PEARL, Liu et al. 2024, section 4).

    p [N, V] or more rows (a last row N is not looked at: the draft already holds what comes after the window). When every node
    stands, `tokens` are the accepted ones alone, as many as `path`, and `extra` is the last of them; otherwise as `ratio`. An
    empty window is a plain step: one token from p[0]. Raises ValueError when the draft is not a chain.
    """
    if not tree.tokens:
        return ratio(tree, p, rng)
    accepted = _accepted_prefix(tree, p, rng, "lockstep_ratio")
    tokens = tuple(tree.tokens[:accepted])
    if accepted < len(tree.tokens):
        tokens += (rng.categorical(residual(p[accepted], _q(tree, accepted))),)
    return Verdict(tuple(range(accepted)), tokens)


def residual(p: Tensor, q: Tensor) -> Tensor:
    """norm(max(p - q, 0)) [V], float64. All zero (p = q, where nothing is ever rejected but by rounding): p itself."""
    p = p.double()
    rest = (p - q).clamp_(min=0.0)
    total = rest.sum()
    return torch.where(total > 0, rest / total, p)


def _accepted_prefix(tree: DraftTree, p: Tensor, rng: RuleRng, rule: str) -> int:
    """How many nodes of a chain stand under the ratio test; one host read for all of them."""
    if not tree.is_chain:
        raise ValueError(f"rule {rule}: the draft is a tree; use recursive_with_replacement or recursive_without_replacement")
    if not tree.tokens:
        return 0
    index = torch.tensor(tree.tokens, device=p.device)[:, None]
    claimed = torch.stack([_q(tree, node) for node in range(len(tree.tokens))])
    pairs = torch.cat([p[: len(tree.tokens)].double().gather(1, index), claimed.gather(1, index)], dim=1).tolist()
    for node, (p_token, q_token) in enumerate(pairs):
        assert q_token > 0, f"node {node} was drawn from a law that gives its token probability 0"
        if not rng.bernoulli(min(1.0, p_token / q_token)):
            return node
    return len(tree.tokens)


def _q(tree: DraftTree, node: int) -> Tensor:
    """The law that a node was drawn from, float64 [V]."""
    assert tree.q is not None, "ratio-type rules need the draft's distributions"
    return tree.q[node].double()
