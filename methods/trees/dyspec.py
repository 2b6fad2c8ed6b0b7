"""DySpec (Xiong et al. 2410.11744): a tree that grows where the draft expects acceptance, siblings drawn without replacement.

Every place where a token can be added has a value, the draft's own estimate that verification gets there: v(root) = 1; drawing
y from what is left of the law R there opens a sibling's place of value v (1 - R[y]) and a child's of value v R[y]. Filling the
best place first is optimal under that estimate. Which place is filled is decided before its token is drawn, so that nothing
that was drawn is dropped because of its value; the paper's rule is `recursive_without_replacement`.

Under the match rules and `delta` nothing is drawn: the likeliest tokens are taken, and a place's token is known as soon as its
parent is expanded. Getting there says nothing then of a token that is hardly ever right (a root of 0.5, 0.1, ... opens two
places of 0.5). So a place whose token is known is worth the chance that this token stands, v R[y], the draft's probability of
the whole path; one whose parent is not expanded yet, v, which is the most that it can come to.

threshold: null is the paper's greedy form, a draft forward per expanded node; a number is its threshold form, level by level:
places of at least that value are opened, a draft forward per level. Lossless: in law under the paper's rule and `delta`; token
for token under the match rules. Ours: the value of a known token, the cap of `num_nodes` in the
threshold form, the depth limit, and the defaults (the paper has 64 nodes and a threshold near one over their number).
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from specbench.config.options import ABOVE_ZERO
from specbench.engine.ranks import likeliest
from specbench.method import (
    MOST_NODES,
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
        whole("method.num_nodes", num_nodes, 1, high=MOST_NODES)
        whole("method.draft_length", draft_length, 1, high=MOST_NODES)
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
    """Where a token can be added, the most valuable first.

    reached: the draft's estimate that verification gets there. children: below the parent as they are taken, the first being
    this place's, each with its probability in `law`; None until the parent is expanded. left: what older siblings have left of
    the law.
    """

    negative_value: float
    number: int  # of equals the older
    parent: int = field(compare=False)
    depth: int = field(compare=False)  # of the token
    reached: float = field(compare=False)
    law: Tensor | None = field(default=None, compare=False)
    children: Sequence[tuple[int, float]] | None = field(default=None, compare=False)
    left: float = field(default=1.0, compare=False)

    @property
    def chance(self) -> float:
        """That its token stands where it is reached."""
        assert self.children
        return min(self.children[0][1] / self.left, 1.0)


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
        here = [Place(-1.0, next(counter), ROOT, 1, 1.0)]
        below: list[Place] = []

        def expand(places: list[Place]) -> None:
            if places[0].parent == ROOT:
                logits = source.root()
            else:
                nodes = [place.parent for place in places]
                logits = source.next([tokens[node] for node in nodes], [given[parents[node]] for node in nodes])
                for node in nodes:
                    given[node] = len(given) - 1
            # Places that are expanded together are of one depth. The order of all draws at once is that of one after another,
            # and no decision sees a token before its place is filled.
            drawn, laws = ranked_children(choice, logits, position + places[0].depth - 1, self.num_nodes - len(tokens))
            for row, (place, children) in enumerate(zip(places, drawn, strict=True)):
                place.children, place.law = children, None if laws is None else laws[row]
                if not choice.draws:
                    place.negative_value *= place.chance

        while (here or below) and len(tokens) < self.num_nodes:
            if not here:
                here, below = below, []
                heapq.heapify(here)
            if here[0].children is None:
                if by_level:  # as many of a level as can be filled, in one forward
                    here = heapq.nsmallest(self.num_nodes - len(tokens), here)
                expand(here if by_level else here[:1])
                if not choice.draws:  # what their tokens are worth is known now, and it may be less than another place
                    heapq.heapify(here)
                    continue
            place = heapq.heappop(here)
            assert place.children
            (token, probability), *younger = place.children
            chance, node = place.chance, len(tokens)
            tokens.append(token)
            parents.append(place.parent)
            if place.law is not None:
                laws.append(place.law)
            if younger and place.left > probability:
                reached = place.reached * (1.0 - chance)
                beside = Place(-reached, next(counter), place.parent, place.depth, reached, place.law, younger)
                beside.left = place.left - probability
                if not choice.draws:
                    beside.negative_value *= beside.chance
                if -beside.negative_value >= least:
                    heapq.heappush(here, beside)
            reached = place.reached * chance
            if reached >= least and place.depth < max_depth:
                heapq.heappush(below if by_level else here, Place(-reached, next(counter), node, place.depth + 1, reached))
        return DraftTree(tokens, parents, Contract.WITHOUT_REPLACEMENT, laws) if choice.draws else DraftTree(tokens, parents)


def ranked_children(
    choice: Choice, logits: Tensor, position: int, count: int
) -> tuple[list[list[tuple[int, float]]], Tensor | None]:
    """At most `count` children of each row of logits [n, vocab], in the order to be tried, each with its probability there.

    Also the laws [n, vocab_size] that they were drawn from, without replacement; None where the likeliest are taken.
    """
    if not choice.draws:
        tokens, values = likeliest(choice.scores(logits, position), count)
        ranked = [zip(row, map(math.exp, of_row), strict=True) for row, of_row in zip(tokens, values, strict=True)]
        return [[child for child in row if child[1] > 0.0] for row in ranked], None
    laws = choice.laws(logits)
    drawn = choice.draw_many(laws, count, False)
    rows = [row for row, tokens in enumerate(drawn) for _ in tokens]
    probabilities = iter(laws[rows, [token for tokens in drawn for token in tokens]].tolist())
    return [[(token, next(probabilities)) for token in tokens] for tokens in drawn], laws
