"""Acceptance rules that change the output's law. Every place that reports them calls the run lossy."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from specbench.engine.tree import DraftTree, Verdict
from specbench.parts.rules.chain import path_to
from specbench.parts.rules.coins import RuleRng

_LOG_FLOOR = 1e-5  # inside the entropy's logarithm, as in the authors' code


def typical(tree: DraftTree, p: Tensor, rng: RuleRng, epsilon: float = 0.09, delta: float = 0.3) -> Verdict:
    """Typical acceptance (Medusa, Cai et al. 2024, section 2.3.1): lossy.

    p [N + 1, V]. Node x stands when p(x) > min(epsilon, delta * exp(-H(p))), H the entropy in nats of p above it. The longest
    path of standing nodes wins, among equals the one with the highest sum of log p; the target's own token is drawn below it.
    Raises ValueError for epsilon outside (0, 1) or delta not above 0.
    """
    if not 0.0 < epsilon < 1.0:
        raise ValueError(f"epsilon={epsilon!r}: give a number between 0 and 1")
    if not 0.0 < delta < math.inf:
        raise ValueError(f"delta={delta!r}: give a number above 0")
    best = -1
    if tree.tokens:
        rows = torch.tensor([tree.parent(node) + 1 for node in range(len(tree.tokens))], device=p.device)
        tokens = torch.tensor(tree.tokens, device=p.device)
        laws = p.double()
        entropy = -(laws * (laws + _LOG_FLOOR).log()).sum(-1)
        threshold = (delta * (-entropy).exp()).clamp(max=epsilon)
        pairs = torch.stack([laws[rows, tokens], threshold[rows]], dim=1).tolist()
        rank = {-1: (0, 0.0)}  # standing nodes: (depth, sum of log p)
        for node, (p_token, least) in enumerate(pairs):
            above = rank.get(tree.parent(node))
            if above is not None and p_token > least:
                rank[node] = (above[0] + 1, above[1] + math.log(p_token))
                if rank[node] > rank[best]:
                    best = node
    path = path_to(tree, best)
    return Verdict(path, (*(tree.tokens[node] for node in path), rng.categorical(p[best + 1].double())))
