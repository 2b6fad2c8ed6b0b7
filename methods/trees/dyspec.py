"""DySpec (Xiong et al. 2410.11744): a tree that grows where the draft expects acceptance, siblings drawn without replacement.

Every place where a token can be added has a value, the draft's own estimate that verification gets there: v(root) = 1; drawing
y from what is left of the law R there opens a sibling's place of value v (1 - R[y]) and a child's of value v R[y]. Filling the
best place first is optimal under that estimate. Which place is filled is decided before its token is drawn, so that nothing
that was drawn is dropped because of its value; the paper's rule is `recursive_without_replacement`.

threshold: null is the paper's greedy form, a draft forward per expanded node; a number is its threshold form, level by level:
places of at least that value are filled, a draft forward per level. Lossless: in law under the paper's rule and `delta`; token
for token under the match rules, where the best tokens are taken instead of drawn ones. Ours: the cap of `num_nodes` in the
threshold form, the depth limit, and the defaults (the paper has 64 nodes and a threshold near one over their number).
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field

import torch
from torch import Tensor

from specbench.config.options import ABOVE_ZERO
from specbench.method import (
    Choice,
    ConfigError,
    Contract,
    DraftTree,
    Method,
    ModelDraft,
    Rule,
    Shape,
    Source,
    Stop,
    exact_rules,
    number,
    whole,
)

ROOT = -1


class DySpec(Method):
    """num_nodes: of a tree at most. draft_length: its depth at most. threshold: a number, auto (1 / num_nodes), or None.

    rule: greedy_match | sample_match | delta | recursive_without_replacement; null = match.
    """

    def __init__(
        self,
        *,
        num_nodes: int = 12,
        draft_length: int = 6,
        threshold: float | str | None = "auto",
        rule: str | Rule | None = None,
    ):
        whole("method.num_nodes", num_nodes, 1)
        whole("method.draft_length", draft_length, 1)
        if isinstance(threshold, str):
            if threshold != "auto":
                raise ConfigError("method.threshold", threshold, "possible: auto, a number above 0 and up to 1, or null")
            threshold = 1.0 / num_nodes
        elif threshold is not None:
            number("method.threshold", threshold, 1e-9, 1.0, "auto, a number above 0 and up to 1, or null")
        shape = Growing(num_nodes, threshold)
        stop = Stop(draft_length)
        rules = [*exact_rules(trees=True), "recursive_without_replacement"]
        super().__init__(ModelDraft(shape, stop), rule=rule, rules=rules, stop=stop, draft_length=draft_length)


@dataclass(order=True)
class Place:
    """Where a token can be added, the best first. rest: what is left of the parent's law; None until it is expanded."""

    negative_value: float
    number: int  # of equals the older
    parent: int = field(compare=False)
    depth: int = field(compare=False)  # of the token
    law: Tensor | None = field(default=None, compare=False)
    rest: Tensor | None = field(default=None, compare=False)


class Growing(Shape):
    """The best place first (threshold None), or level by level all places of at least `threshold`."""

    form = "dynamic tree"
    branches = True

    def __init__(self, num_nodes: int, threshold: float | None):
        self.num_nodes, self.threshold = num_nodes, threshold

    def max_nodes(self, max_depth: int) -> int:
        return self.num_nodes

    def grow(self, source: Source, max_depth: int, choice: Choice, position: int, stop: Stop) -> DraftTree:
        tokens: list[int] = []
        parents: list[int] = []
        laws: list[Tensor] = []
        given = {ROOT: ROOT}  # node: its number among those that the source was given
        by_level = self.threshold is not None
        least = ABOVE_ZERO if self.threshold is None else self.threshold
        counter = itertools.count()
        here = [Place(-1.0, next(counter), ROOT, 1)]
        below: list[Place] = []

        def expand(places: list[Place]) -> None:
            if places[0].parent == ROOT:
                logits = source.root()
            else:
                nodes = [place.parent for place in places]
                logits = source.next([tokens[node] for node in nodes], [given[parents[node]] for node in nodes])
                for node in nodes:
                    given[node] = len(given) - 1
            for row, place in zip(logits, places, strict=True):
                place.law = choice.weights(row[None], position + place.depth - 1)[0]
                place.rest = place.law.double()

        while (here or below) and len(tokens) < self.num_nodes:
            if not here:
                here, below = below, []
                heapq.heapify(here)
            if here[0].rest is None:  # as many of a level as can be filled, in one forward
                expand(heapq.nsmallest(self.num_nodes - len(tokens), here) if by_level else here[:1])
            place = heapq.heappop(here)
            assert place.rest is not None and place.law is not None
            token = choice.draw_many(place.rest[None], 1, False)[0][0] if choice.draws else int(place.rest.argmax())
            value, chance = -place.negative_value, float(place.rest[token] / place.rest.sum())
            node = len(tokens)
            tokens.append(token)
            parents.append(place.parent)
            if choice.draws:
                laws.append(place.law)
            rest = place.rest.index_fill(0, torch.tensor([token], device=place.rest.device), 0.0)
            if value * (1.0 - chance) >= least and float(rest.sum()) > 0.0:
                sibling = Place(-value * (1.0 - chance), next(counter), place.parent, place.depth, place.law, rest)
                heapq.heappush(here, sibling)
            if value * chance >= least and place.depth < max_depth:
                heapq.heappush(below if by_level else here, Place(-value * chance, next(counter), node, place.depth + 1))
        return DraftTree(tokens, parents, Contract.WITHOUT_REPLACEMENT, laws) if choice.draws else DraftTree(tokens, parents)
