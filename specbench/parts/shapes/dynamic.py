"""Dynamic draft trees: grown level by level where the draft is confident (EAGLE-2, Li et al. 2024, section 4).

A node's score is the draft's log-probability of the whole path to it. Expansion: at every level the `top_k` nodes of the
highest score each get their `top_k` likeliest tokens as children. Re-ranking: of all nodes of all levels the best N stay. A
child's score is never above its parent's, and of equals the earlier node (the parent) goes first, so what stays holds its
ancestors. Beyond the paper: a node that N others already beat is not expanded, since none of its descendants could stay. The
tree is the same, and where the draft is unsure whole levels are saved.

All of this is a deterministic function of the draft's distributions: such a tree is a FIXED_SET, exact under match rules (and
delta), wrong under ratio rules. Nodes are numbered in the order in which they are offered, level by level; -1 is the root.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from specbench.engine.ranks import ranked
from specbench.engine.tree import DraftTree
from specbench.parts.contracts import Shape

if TYPE_CHECKING:
    from specbench.parts.contracts import Source, Stop
    from specbench.parts.drafts.choice import Choice

ROOT = -1


def renumber(kept: Sequence[int], parents: Sequence[int]) -> list[int]:
    """The parents of the kept nodes in the numbering of the kept ones (-1 stays the root), as `DraftTree` takes them."""
    place = {node: index for index, node in enumerate(kept)}
    place[ROOT] = ROOT
    return [place[parents[node]] for node in kept]


@dataclass
class Growth:
    """A tree while it grows: offer the children of the frontier, ask for the next frontier, and at last for the best nodes.

    top_k: children of an expanded node, and nodes expanded per level. num_nodes: N, how many stay in the end. standing: the
    numbers of the N best so far, best first; of equals the earlier goes first.
    """

    top_k: int
    num_nodes: int
    tokens: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    standing: list[int] = field(default_factory=list)

    def offer(self, nodes: Sequence[int], tokens: Sequence[int], scores: Sequence[float]) -> list[int]:
        """Equally many children of each node, one node's behind the other's, with the log-probabilities of their paths, as
        `ranked` gives them; returns the next frontier: which of them are worth expanding, ascending, at most `top_k`.

        Left out are those that `num_nodes` nodes beat already or equal.
        """
        first, each, known = len(self.tokens), len(tokens) // len(nodes), self.scores
        self.tokens += tokens
        known += scores
        for node in nodes:
            self.parents += [node] * each
        able = [*self.standing, *range(first, len(known))]
        standing = self.standing = sorted(able, key=known.__getitem__, reverse=True)[: self.num_nodes]  # keeps equals' order
        bar = known[standing[-1]] if len(standing) == self.num_nodes else -math.inf
        return sorted([node for node in standing if node >= first and known[node] > bar][: self.top_k])

    def reached(self, nodes: Sequence[int]) -> list[float]:
        """Log-probabilities of the paths to them."""
        return [self.scores[node] if node >= 0 else 0.0 for node in nodes]

    def best(self) -> tuple[list[int], list[int]]:
        """Tokens and parents of the tree that stays, as `DraftTree` takes them: parents before children, siblings in their
        order; nodes of score -inf never stay.

        Raises ValueError when a child's score is above its parent's (then the best nodes need not be a tree).
        """
        scores, parents = self.scores, self.parents
        kept = sorted(node for node in self.standing if scores[node] > -math.inf)
        for node in kept:
            parent = parents[node]
            if parent >= 0 and scores[node] > scores[parent]:
                raise ValueError(
                    f"node {node}: score {scores[node]} above its parent's {scores[parent]}; take sums of logarithms"
                )
        return [self.tokens[node] for node in kept], renumber(kept, parents)


class Dynamic(Shape):
    """Level by level where the source is confident (`Growth`). num_nodes: shown to the target; top_k: see `Growth`."""

    form = "dynamic tree"

    def __init__(self, top_k: int, num_nodes: int):
        self.top_k, self.num_nodes = top_k, num_nodes

    @property
    def branches(self) -> bool:
        return self.top_k > 1

    def max_nodes(self, max_depth: int) -> int:
        return self.num_nodes

    def max_rows(self, max_depth: int) -> int:
        # Below num_nodes levels nothing is expanded: the ancestors alone beat whatever stands there.
        return min(self.top_k, self.num_nodes) * min(max_depth, self.num_nodes)

    def grow(self, source: Source, max_depth: int, choice: Choice, position: int, stop: Stop) -> DraftTree:
        width = min(self.top_k, self.num_nodes)
        growth = Growth(width, self.num_nodes)
        logits, frontier, fed = source.root(), [ROOT], 0
        number_of: dict[int, int] = {ROOT: ROOT}  # of the nodes that the source was given, in its numbering
        for level in range(max_depth):
            scores = choice.scores(logits, position + level)
            frontier = growth.offer(frontier, *ranked(scores, width, above=growth.reached(frontier)))
            if not frontier or level + 1 == max_depth:
                break
            above = [number_of[growth.parents[node]] for node in frontier]
            logits = source.next([growth.tokens[node] for node in frontier], above)
            number_of.update(zip(frontier, range(fed, fed + len(frontier)), strict=True))
            fed += len(frontier)
        chosen, parents = growth.best()
        is_chain = not self.branches or parents == list(range(-1, len(parents) - 1))
        return DraftTree(chosen, None if is_chain else parents)
