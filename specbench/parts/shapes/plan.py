"""A static tree in the order in which it is drafted, so that all nodes of a level are filled at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specbench.engine.tree import DraftTree
from specbench.parts.shapes.static import Node, parents_of


@dataclass(frozen=True)
class Level:
    """The nodes of one depth, from 1 up, to be filled together.

    above: the nodes of the depth before that have children, by their place in that depth (depth 1: the root, [0]). parent: for
    every node of this depth the place of its parent in `above`; choice: which of its parent's candidates it is, of so many as
    `width` says. is_whole: all nodes of the depth before have children.
    """

    depth: int
    width: int
    above: Tensor
    parent: Tensor
    choice: Tensor
    is_whole: bool
    _by_row: list[int]  # of every node the place among all candidates, one row behind the other
    _of_one_row: list[int]

    def pick(self, candidates: Tensor) -> Tensor:
        """The nodes' ids, int64 [nodes], of the candidates [nodes of `above`, width], or of one row for all, [1, width]."""
        places = self.choice if len(candidates) == 1 else self.parent * self.width + self.choice
        return candidates.flatten().index_select(0, places)

    def picked(self, candidates: list[int]) -> list[int]:
        """The same of candidates that the host has, one row behind the other."""
        places = self._of_one_row if len(candidates) == self.width else self._by_row
        return [candidates[place] for place in places]


class TreePlan:
    """By depth, siblings by rank: any beginning of its levels is a tree."""

    def __init__(self, nodes: Sequence[Node], device: torch.device):
        self.nodes = sorted(nodes, key=lambda node: (len(node), node))
        self.parents = parents_of(self.nodes)
        self.depth = max((len(node) for node in self.nodes), default=0)
        self.ends = [sum(len(node) <= depth for node in self.nodes) for depth in range(self.depth + 1)]
        self.levels: list[Level] = []
        places: dict[Node, int] = {(): 0}
        for depth in range(1, self.depth + 1):
            here = [node for node in self.nodes if len(node) == depth]
            above = sorted({places[node[:-1]] for node in here})
            parent = [above.index(places[node[:-1]]) for node in here]
            choice = [node[-1] for node in here]
            width, is_whole = 1 + max(choice), above == list(range(len(places)))
            by_row = [width * row + rank for row, rank in zip(parent, choice, strict=True)]
            rows, hung, ranks = (torch.tensor(values, device=device) for values in (above, parent, choice))
            self.levels.append(Level(depth, width, rows, hung, ranks, is_whole, by_row, choice))
            places = {node: place for place, node in enumerate(here)}

    def tree(self, tokens: list[int], depth: int, num_forwards: int) -> DraftTree:
        """The first `depth` levels filled with tokens; as a chain where no node has a sibling."""
        parents: list[int] | None = self.parents[: self.ends[depth]]
        if parents == list(range(-1, len(tokens) - 1)):
            parents = None
        return DraftTree(tokens, parents, num_forwards=num_forwards)
