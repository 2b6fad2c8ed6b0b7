"""The tree of the likeliest continuations, where what may follow is counted: best first, with no model behind it."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from specbench.engine.tree import DraftTree

Place = TypeVar("Place")


@dataclass
class Likeliest:
    """Nodes in the order of their probability, parents first; parents[i] is -1 below the root. probabilities: of the paths.

    places: where each node leads, as it was met.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    places: list[Any] = field(default_factory=list)

    @property
    def score(self) -> float:
        """Tokens that are expected to stand, if the counts are right."""
        return sum(self.probabilities)

    def first(self, num_nodes: int) -> Likeliest:
        """The likeliest so many of them, which are a tree too."""
        n = num_nodes
        return Likeliest(self.tokens[:n], self.parents[:n], self.probabilities[:n], self.places[:n])

    def draft(self, phase: str = "") -> DraftTree:
        """As a chain where no node has a sibling."""
        chain = self.parents == list(range(-1, len(self.tokens) - 1))
        return DraftTree(self.tokens, None if chain else self.parents, phase=phase)


def grow_likeliest(
    root: Place,
    children: Callable[[Place], Iterable[tuple[int, float, Place]]],
    num_nodes: int,
    max_depth: int,
    least: float = 0.0,
    branches: bool = True,
    goes_on: Callable[[float], bool] | None = None,
) -> Likeliest:
    """The `num_nodes` likeliest nodes below root, at most `max_depth` deep, of probability `least` and up.

    children: of a place the tokens that may follow, the share of each, and where it leads; of equals the one that was met
    first goes first. branches: whether siblings are taken; else the likeliest child of each node alone. goes_on: asked behind
    each node, with the probability of its path, whether more are wanted.
    """
    tree = Likeliest()
    waiting: list[tuple[float, int, int, int, int, Place]] = []
    met = 0

    def offer(place: Place, node: int, depth: int, above: float) -> None:
        nonlocal met
        found = children(place)
        if not branches:
            found = [max(found, key=lambda child: child[1])] if (found := list(found)) else []
        for token, share, below in found:
            if above * share >= least:
                met += 1  # decides between equals, so that places are never compared
                heapq.heappush(waiting, (-above * share, met, token, node, depth, below))

    if num_nodes > 0 and max_depth > 0:
        offer(root, -1, 1, 1.0)
    while waiting and len(tree.tokens) < num_nodes:
        negative, _, token, parent, depth, place = heapq.heappop(waiting)
        node = len(tree.tokens)
        tree.tokens.append(token)
        tree.parents.append(parent)
        tree.probabilities.append(-negative)
        tree.places.append(place)
        if goes_on is not None and not goes_on(-negative):
            break
        if depth < max_depth:
            offer(place, node, depth + 1, -negative)
    return tree
