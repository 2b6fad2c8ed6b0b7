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

from collections.abc import Sequence

import torch
from torch import Tensor

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
        # Of the rows' paths: log-probability and what it became by the draw, of which it is the largest that can come below.
        log_prob = torch.zeros(1, dtype=torch.float64, device=logits.device)
        perturbed = log_prob
        for level in range(max_depth):
            law = choice.weights(logits, position + level)
            below = log_prob[:, None] + law.double().log()  # log-probabilities of all children's paths
            keys = gumbel_below(below, perturbed, choice.generator) if choice.draws else below
            best = keys.flatten().topk(min(self.width, keys.numel()))
            able = int((best.values > -torch.inf).sum())
            places = best.indices[:able]
            vocab_size = keys.shape[1]
            rows, children = (places // vocab_size).tolist(), (places % vocab_size).tolist()
            first = len(tokens)
            tokens += children
            parents += [above[row] for row in rows]
            laws += [law[row] for row in rows] if choice.draws else []
            if level + 1 == max_depth:
                break
            logits = source.next(children, [above[row] for row in rows])
            log_prob, perturbed = below.flatten()[places], best.values[:able]
            above = list(range(first, len(tokens)))
        form = parents if self.branches else None
        return DraftTree(tokens, form, Contract.WITHOUT_REPLACEMENT, laws) if choice.draws else DraftTree(tokens, form)


def gumbel_below(log_prob: Tensor, largest: Tensor, generator: torch.Generator) -> Tensor:
    """Gumbel noise around log_prob [n, vocab] on condition that the largest of a row is largest[row] (Kool et al., section 3).

    -log(exp(-largest) - exp(-Z) + exp(-g)) with g the free draws and Z their maximum, in their appendix's stable form.
    """
    noise = torch.empty_like(log_prob).exponential_(generator=generator).log().neg()
    free = log_prob + noise
    gap = free - free.max(dim=1, keepdim=True).values
    # log(1 - exp(gap)), -inf at the maximum itself
    log_rest = torch.where(gap > -0.6931, gap.expm1().neg().log(), gap.exp().neg().log1p())
    v = largest[:, None] - free + log_rest
    kept = largest[:, None] - v.clamp(min=0.0) - v.abs().neg().exp().log1p()
    return torch.where(log_prob > -torch.inf, kept, log_prob)
