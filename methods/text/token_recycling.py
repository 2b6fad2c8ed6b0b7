"""Token Recycling (Luo et al. 2408.08696): the target's likeliest next tokens, kept per token, fill a fixed tree.

A matrix keeps for every token of the vocabulary the `width` likeliest tokens behind it, as the target said when it last read
that token: all rows of a verification are kept, rejected ones too, since what was computed for nothing is worth something
later. A round's tree has a fixed form; a node is a choice among its parent's row. Greedy in the released code; here every rule
for a fixed set is exact, as the tree is filled without chance.

Of the paper are the matrix of eight (1 MB at a vocabulary of 32,000, as int32), 80 nodes with 8, 21, 25, 15, 8 and 3 of them
at depths 1 to 6, its start with nothing (the prompt's logits are not used) and its life across requests: the order of prompts
is part of the result, and `scope: sample` begins every prompt cold. Ours: which 80 nodes these are (the likeliest of every
depth, a rank's share taken as falling like 1 / (rank + 1) squared); rows that nobody wrote yet draft nothing; where a token
stands on several rows of a forward a committed row wins, and the last of equals (undefined in the released code).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specbench.method import (
    Drafter,
    DraftTree,
    Evidence,
    Feedback,
    Method,
    Needs,
    Request,
    Rule,
    Setting,
    exact_rules,
    one_of,
    whole,
)
from specbench.parts.shapes.static import Node, node_probabilities, parents_of

BY_DEPTH = (8, 21, 25, 15, 8, 3)
WIDTH = 8
_SPAN = 16
IntArray = np.ndarray[Any, np.dtype[np.int64]]
_SHARES = [1.0 / (rank + 1) ** 2 for rank in range(WIDTH)]
SHARES = [[share / sum(_SHARES) for share in _SHARES]] * len(BY_DEPTH)


def template(num_nodes: int) -> list[Node]:
    """The likeliest `num_nodes` of the 80 nodes, by depth."""
    nodes: list[Node] = []
    level: list[Node] = [()]
    for count in BY_DEPTH:
        below = [(*node, choice) for node in level for choice in range(WIDTH)]
        value = dict(zip(below, node_probabilities(SHARES, below), strict=True))
        level = sorted(below, key=lambda node: (-value[node], node))[:count]
        nodes += level
    value = dict(zip(nodes, node_probabilities(SHARES, nodes), strict=True))
    return sorted(
        sorted(nodes, key=lambda node: (-value[node], len(node), node))[:num_nodes], key=lambda node: (len(node), node)
    )


def likeliest(logits: Tensor, count: int, rows: Sequence[int]) -> IntArray:
    """The ids [len(rows), count] of the greatest of logits [all rows, vocab], best first.

    On the CPU every `_SPAN`-th id is one column: the greatest are in the columns of the greatest maxima, or behind the last
    column. A third to a tenth of topk's time; the maxima are taken of all rows, for a copy of some costs more.
    """
    vocab_size, chosen = logits.shape[1], np.array(rows)
    if not logits.is_cpu or logits.dtype != torch.float32 or vocab_size < 4 * count * _SPAN:
        ids: IntArray = logits.topk(count, dim=-1).indices.cpu().numpy()[chosen]
        return ids
    width = vocab_size // _SPAN
    maxima = logits[:, : width * _SPAN].unflatten(-1, (_SPAN, width)).amax(dim=1)  # over whole vectors
    columns = maxima[chosen].topk(count, dim=-1, sorted=False).indices.numpy()
    candidates = (np.arange(_SPAN)[:, None] * width + columns[:, None, :]).reshape(len(rows), -1)
    if vocab_size % _SPAN:
        rest = np.broadcast_to(np.arange(width * _SPAN, vocab_size), (len(rows), vocab_size % _SPAN))
        candidates = np.concatenate([candidates, rest], axis=1)
    found, row = logits.numpy()[chosen[:, None], candidates], np.arange(len(rows))[:, None]
    best = found.argpartition(-count, axis=1)[:, -count:]
    best = best[row, (-found[row, best]).argsort(axis=1)]
    return candidates[row, best]


class TokenRecycling(Method):
    """num_nodes: of the template, at most 80. scope: session (the matrix lasts) | sample.

    rule: greedy_match | sample_match | delta; null = match.
    """

    def __init__(self, *, num_nodes: int = 80, scope: str = "session", rule: str | Rule | None = None):
        whole("method.num_nodes", num_nodes, 1)
        one_of("method.scope", scope, "session", "sample")
        super().__init__(RecycledDraft(num_nodes, scope), rule=rule, rules=exact_rules(trees=True))


class RecycledDraft(Drafter):
    """successors [vocab, width]: the likeliest next tokens, best first; -1 where nobody wrote yet."""

    source, form = "the target's own top tokens", "static tree"
    successors = np.empty((0, WIDTH), dtype=np.int32)

    def __init__(self, num_nodes: int, scope: str):
        self.nodes, self.needs = template(num_nodes), Needs(scope="session" if scope == "session" else "sample")

    @property
    def max_nodes(self) -> int:
        return len(self.nodes)

    def open(self, setting: Setting) -> None:
        model = setting.runtime.target
        if model.tree_refusal is not None:
            self.nodes = [node for node in self.nodes if not any(node)]
        self.parents = parents_of(self.nodes)
        self.successors = np.full((model.vocab_size, min(WIDTH, model.vocab_size)), -1, dtype=np.int32)

    def reset(self) -> None:
        self.successors.fill(-1)

    def begin(self, request: Request, first_token: int, evidence: Evidence) -> None:
        if self.needs.scope == "sample":
            self.reset()
        self.pending = first_token

    def propose(self, max_depth: int) -> DraftTree:
        rows: dict[int, list[int]] = {}
        place = {-1: -1}  # of the template's nodes that are drafted
        tokens: list[int] = []
        parents: list[int] = []
        for number, (node, above) in enumerate(zip(self.nodes, self.parents, strict=True)):
            if len(node) > max_depth:
                break
            if above not in place:
                continue
            token = tokens[place[above]] if above >= 0 else self.pending
            if token not in rows:
                rows[token] = self.successors[token].tolist()
            if node[-1] < len(rows[token]) and rows[token][node[-1]] >= 0:
                place[number] = len(tokens)
                tokens.append(rows[token][node[-1]])
                parents.append(place[above])
        return DraftTree(tokens, None if parents == list(range(-1, len(tokens) - 1)) else parents)

    @torch.inference_mode()
    def observe(self, feedback: Feedback) -> None:
        verdict, logits = feedback.verdict, feedback.evidence.logits
        read = [self.pending, *feedback.tree.tokens]
        latest = {token: row for row, token in enumerate(read)} | {read[row]: row for row in verdict.rows}
        self.successors[list(latest)] = likeliest(logits, self.successors.shape[1], list(latest.values()))
        self.pending = verdict.extra

    def memory_bytes(self) -> dict[str, int]:
        return {"successors": self.successors.nbytes}
