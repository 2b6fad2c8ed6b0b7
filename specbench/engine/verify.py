"""Acceptance rules: pure functions from a draft tree and what the target thinks of it to a verdict.

A rule walks from the root (the pending token) down the drafted nodes and decides which of them stand; after the last one comes
a token of the target's own. Rules know no cache, no model and no clock. Row 0 of `choice` and of `p` belongs to the root, row
i + 1 to node i: it is what the target says *after* that node. Distributions are the warped ones (temperature, top-k, top-p),
for target and draft alike; arithmetic is float64.

Rules that toss coins ask a `RuleRng`, so that the same code can be enumerated exactly, branch by branch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from specbench.engine.tree import DraftTree, Verdict


class RuleRng(Protocol):
    """Where a rule's randomness comes from."""

    def bernoulli(self, probability: float) -> bool:
        """True with this probability (in [0, 1])."""
        ...

    def categorical(self, probabilities: Tensor) -> int:
        """An index drawn from probabilities [V], float64, which sum to 1 up to rounding."""
        ...


class TorchRng:
    """RuleRng on an explicit CPU generator; the distributions may live on any device, and the draw does not depend on it."""

    def __init__(self, generator: torch.Generator):
        self.generator = generator

    @classmethod
    def seeded(cls, seed: int) -> TorchRng:
        return cls(torch.Generator().manual_seed(seed))

    def _uniform(self) -> float:
        return torch.rand((), dtype=torch.float64, generator=self.generator).item()

    def bernoulli(self, probability: float) -> bool:
        return self._uniform() < probability

    def categorical(self, probabilities: Tensor) -> int:
        cumulative = probabilities.double().cumsum(0)
        # The first index whose cumulative probability exceeds the draw: a token of probability 0 never is.
        index = int(torch.searchsorted(cumulative, cumulative[-1:] * self._uniform(), right=True).item())
        if index == len(probabilities):  # rounding carried the draw up to the total itself
            index = int(probabilities.nonzero()[-1].item())
        return index


def match(tree: DraftTree, choice: Sequence[int]) -> Verdict:
    """Follow the child that equals the target's own token at every node (greedy_match and sample_match).

    choice [N + 1]: the target's token after the root and after each node, an argmax or ONE draw per node. Among siblings with
    equal tokens the first is followed: looking further down for the luckier one would bias the output.
    """
    if tree.parents is None:
        accepted = 0
        for token in tree.tokens:
            if choice[accepted] != token:
                break
            accepted += 1
        return Verdict(tuple(range(accepted)), tuple(choice[: accepted + 1]))
    path: list[int] = []
    tokens: list[int] = []
    wanted, here = choice[0], -1
    for node, parent in enumerate(tree.parents):  # parents come before their children: one pass is enough
        if parent == here and tree.tokens[node] == wanted:
            path.append(node)
            tokens.append(wanted)
            wanted, here = choice[node + 1], node
    return Verdict(tuple(path), (*tokens, wanted))


def ratio(tree: DraftTree, p: Tensor, rng: RuleRng) -> Verdict:
    """Speculative sampling on a chain (Leviathan et al. 2023, algorithm 1; Chen et al. 2023).

    p [N + 1, V]; tree.q[i] [V] is the law that node i was drawn from. Node i stands with probability min(1, p/q) of its token;
    the first that falls is replaced by a draw from norm(max(p - q, 0)); if all stand, a bonus is drawn from p[N].
    Raises ValueError when the draft is not a chain.
    """
    accepted = _accepted_prefix(tree, p, rng, "ratio")
    law = p[accepted].double() if accepted == len(tree.tokens) else residual(p[accepted], _q(tree, accepted))
    return Verdict(tuple(range(accepted)), (*tree.tokens[:accepted], rng.categorical(law)))


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
