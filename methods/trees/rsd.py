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

from specbench.engine.ranks import greatest, ranked
from specbench.method import (
    MOST_NODES,
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
    not_together,
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
        whole("method.width", width, 1, high=MOST_NODES)
        whole("method.draft_length", draft_length, 1, high=MOST_NODES)
        if branching is None:
            said = "that is a tree of {rows} nodes"
            not_together("method.width", width, width * draft_length, MOST_NODES, said, draft_length=draft_length)
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
        reached, largest = [0.0], [0.0]  # of the rows: log-probability of the path, and what it became by the draw
        for level in range(max_depth):
            # A row's `width` best are enough: what noise becomes below the largest keeps its order.
            if choice.draws:
                law = choice.laws(logits)
                children, keys, log_probs = self._drawn(choice, law, reached, largest)
            else:
                children, keys = ranked(choice.scores(logits, position + level), self.width, above=reached)
                log_probs = keys
            best = sorted(range(len(keys)), key=keys.__getitem__, reverse=True)[: self.width]  # of equals the earlier first
            best = [at for at in best if keys[at] > -math.inf]
            first, of_row = len(tokens), len(keys) // len(above)
            new, nodes = [children[at] for at in best], [above[at // of_row] for at in best]
            tokens += new
            parents += nodes
            if choice.draws:
                laws += [law[at // of_row] for at in best]
            if level + 1 == max_depth:
                break
            logits = source.next(new, nodes)
            reached, largest = [log_probs[at] for at in best], [keys[at] for at in best]
            above = list(range(first, len(tokens)))
        form = parents if self.branches else None
        return DraftTree(tokens, form, Contract.WITHOUT_REPLACEMENT, laws) if choice.draws else DraftTree(tokens, form)

    def _drawn(
        self, choice: Choice, law: Tensor, reached: Sequence[float], largest: Sequence[float]
    ) -> tuple[list[int], list[float], list[float]]:
        """Of each row of law `width` children, drawn: tokens, keys, log-probabilities of their paths, row by row.

        largest: by row, the largest key that can come below it.
        """
        race, ids = greatest(choice.race(law.double()), self.width)
        free, log_probs = torch.stack([race, law.gather(1, ids).double()]).log().tolist()
        keys: list[float] = []
        paths: list[float] = []
        for row, path in enumerate(reached):
            keys += gumbel_below([path + value for value in free[row]], largest[row])
            paths += [path + value for value in log_probs[row]]
        return ids.flatten().tolist(), keys, paths


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
