"""Recursive speculative decoding (RSD, Jeon et al. 2402.14160): trees drawn without replacement, at a fixed length or budget.

Constant branching (RSD-C, `branching`): a number of children per depth, drawn without replacement by the Gumbel-top-k trick.
Stochastic beam search (RSD-S, `width`): of all children of a level those `width` stay whose paths have the highest perturbed
log-probability, which draws paths without replacement (Kool et al. 1903.06059). Children stay in the order of their draws, in
which the paper's rule (`recursive_without_replacement`) must try them.

Lossless: in law under the paper's rule and `delta`; token for token under the match rules, where nothing is drawn: the children
are the likeliest ones, the beam an ordinary beam search. Defaults are ours; the paper's grid has lengths of 2 to 5 and budgets
of 6 to 30 nodes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from specbench.engine.ranks import greatest, likeliest
from specbench.method import (
    Choice,
    Contract,
    DraftTree,
    Drawn,
    Method,
    ModelDraft,
    Rule,
    Shape,
    Source,
    Stop,
    branching_nodes,
    exact_rules,
    whole,
)

ROOT = -1


class RecursiveSpeculative(Method):
    """branching: children per node by depth (RSD-C); None: a stochastic beam of `width` nodes in each of `draft_length` levels.

    rule: greedy_match | sample_match | delta | recursive_without_replacement; null = match.
    """

    def __init__(
        self,
        *,
        branching: Sequence[int] | None = None,
        width: int = 3,
        draft_length: int = 4,
        rule: str | Rule | None = None,
    ):
        whole("method.width", width, 1)
        whole("method.draft_length", draft_length, 1)
        shape: Shape = StochasticBeam(width)
        if branching is not None:
            shape = Drawn(branching_nodes(branching), Contract.WITHOUT_REPLACEMENT)
            draft_length = len(branching)
        stop = Stop(draft_length)
        rules = [*exact_rules(trees=True), "recursive_without_replacement"]
        super().__init__(ModelDraft(shape, stop), rule=rule, rules=rules, stop=stop, draft_length=draft_length)


class StochasticBeam(Shape):
    """`width` nodes a level: the best by perturbed log-probability of their paths, or by log-probability without a draw."""

    form = "beam"

    def __init__(self, width: int):
        self.width = width

    @property
    def branches(self) -> bool:
        return self.width > 1

    def max_nodes(self, max_depth: int) -> int:
        return self.width * max_depth

    def grow(self, source: Source, max_depth: int, choice: Choice, position: int, stop: Stop) -> DraftTree:
        tokens: list[int] = []
        parents: list[int] = []
        laws: list[Tensor] = []
        logits, above = source.root(), [ROOT]  # the nodes of the rows of logits: numbered alike by the tree and by the source
        paths = [(0.0, 0.0)]  # of the rows: log-probability, and what it became by the draw, the largest that can come below
        for level in range(max_depth):
            # A row's `width` best are enough: what noise becomes below the largest keeps its order.
            law = choice.laws(logits) if choice.draws else None
            if law is None:
                children, log_probs = likeliest(choice.scores(logits, position + level), self.width)
                free = log_probs
            else:
                race, ids = greatest(choice.race(law.double()), self.width)
                free, log_probs = torch.stack([race, law.gather(1, ids).double()]).log().tolist()
                children = ids.tolist()
            found: list[tuple[float, float, int, int]] = []  # key, log-probability of the path, row, token
            for row, (above_it, largest) in enumerate(paths):
                keys = [above_it + value for value in free[row]]
                keys = keys if law is None else gumbel_below(keys, largest)
                found += [(k, above_it + p, row, t) for k, p, t in zip(keys, log_probs[row], children[row], strict=True)]
            found = sorted((child for child in found if child[0] > -math.inf), key=lambda child: -child[0])[: self.width]
            first = len(tokens)
            new, nodes = [token for *_, token in found], [above[row] for *_, row, _ in found]
            tokens += new
            parents += nodes
            laws += [] if law is None else [law[row] for *_, row, _ in found]
            if level + 1 == max_depth:
                break
            logits = source.next(new, nodes)
            paths = [(log_prob, key) for key, log_prob, _, _ in found]
            above = list(range(first, len(tokens)))
        form = parents if self.branches else None
        return DraftTree(tokens, form, Contract.WITHOUT_REPLACEMENT, laws) if choice.draws else DraftTree(tokens, form)


def gumbel_below(free: Sequence[float], largest: float) -> list[float]:
    """Log-probabilities with Gumbel noise, on condition that the largest is `largest` (Kool et al., section 3).

    -log(exp(-largest) - exp(-Z) + exp(-g)), g being `free`, the free draws, Z their maximum, in their appendix's stable form.
    """
    top, kept = max(free), []
    for g in free:
        if g == top or g == -math.inf:
            kept.append(largest if g == top else g)
            continue
        gap = g - top  # and log(1 - exp(gap))
        v = largest - g + (math.log(-math.expm1(gap)) if gap > -0.6931 else math.log1p(-math.exp(gap)))
        kept.append(largest - max(v, 0.0) - math.log1p(math.exp(-abs(v))))
    return kept
