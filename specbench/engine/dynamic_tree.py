"""Dynamic draft trees: grown level by level where the draft is confident (EAGLE-2, Li et al. 2024, section 4).

A node's score is the draft's log-probability of the whole path to it. Expansion: at every level the `top_k` nodes of the
highest score each get their `top_k` likeliest tokens as children. Re-ranking: of all nodes of all levels the best N stay. A
child's score is never above its parent's, and of equals the earlier node (the parent) goes first, so what stays holds its
ancestors.

All of this is a deterministic function of the draft's distributions: such a tree is a FIXED_SET, exact under match rules (and
delta), wrong under ratio rules. Nodes are numbered in the order in which they are offered, level by level; -1 is the root.
The functions work on tensors of any device and read nothing back to the host, except `keep_best`, which works on lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Candidates:
    """The nodes that one level offers, n of them: siblings side by side, likeliest first.

    tokens [n] int64; scores [n] float32: log-probability of the path from the root; parents [n] int64: numbers of their
    parents; rows [n] int64: which of the level's expanded rows each hangs on.
    """

    tokens: Tensor
    scores: Tensor
    parents: Tensor
    rows: Tensor


def expand(logits: Tensor, scores: Tensor, nodes: Tensor, top_k: int) -> Candidates:
    """The `top_k` likeliest children of every expanded node.

    logits [w, V]: the draft's, below each expanded node. scores [w]: the nodes' own (0 for the root). nodes [w]: their numbers.
    top_k larger than the vocabulary gives all of it.
    """
    values, tokens = logits.float().log_softmax(dim=-1).topk(min(top_k, logits.shape[-1]), dim=-1)
    width, count = tokens.shape
    # A log-probability is not above 0; that rounding might say so must not put a child before its parent.
    cumulative = scores.unsqueeze(1) + values.clamp_(max=0.0)
    rows = torch.arange(width, device=logits.device).repeat_interleave(count)
    return Candidates(tokens.flatten(), cumulative.flatten(), nodes.repeat_interleave(count), rows)


def frontier(scores: Tensor, top_k: int) -> Tensor:
    """Which nodes of a level are expanded next: indices [min(top_k, n)] of the best scores, of equals the first, ascending."""
    best = torch.sort(scores, descending=True, stable=True).indices[:top_k]
    return best.sort().values


def keep_best(scores: Sequence[float], parents: Sequence[int], num_nodes: int) -> list[int]:
    """The numbers of the `num_nodes` best nodes, ascending: parents before children, siblings in their order.

    scores[i] and parents[i] of node i over all levels; parents[i] < i. Of equals the earlier node stays.
    Raises ValueError when a child's score is above its parent's (then the best nodes need not be a tree).
    """
    order = sorted(range(len(scores)), key=lambda node: (-scores[node], node))
    kept = sorted(order[: max(num_nodes, 0)])
    for node in kept:
        parent = parents[node]
        if parent >= 0 and scores[node] > scores[parent]:
            raise ValueError(f"node {node}: score {scores[node]} above its parent's {scores[parent]}; take sums of logarithms")
    return kept


def renumber(kept: Sequence[int], parents: Sequence[int]) -> list[int]:
    """The parents of the kept nodes in the numbering of the kept ones (-1 stays the root), as `DraftTree` takes them."""
    place = {node: index for index, node in enumerate(kept)}
    place[-1] = -1
    return [place[parents[node]] for node in kept]
