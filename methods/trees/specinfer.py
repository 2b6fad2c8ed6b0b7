"""SpecInfer (Miao et al. 2305.09781): a token tree with a fixed number of children per depth, verified in one forward.

The draft model draws `branching[d]` children i.i.d. (with replacement) below every node of depth d; the paper's rule for them
is multi-step speculative sampling (`recursive_with_replacement`). Lossless: token for token under the match rules, where the
children are the likeliest tokens instead; in law under the paper's rule and `delta`.

Of the paper: one draft model grows the tree; merging the trees of several is not here. Equal siblings, which draws with
replacement bring, stay rows of their own: the rule counts draws.
"""

from __future__ import annotations

from collections.abc import Sequence

from specbench.method import Contract, Drawn, Method, ModelDraft, Rule, Stop, branching_nodes, exact_rules


class SpecInfer(Method):
    """branching: children per node by depth. rule: greedy_match | sample_match | delta | recursive_with_replacement; null =
    match.
    """

    def __init__(self, *, branching: Sequence[int] = (1, 1, 3, 1), rule: str | Rule | None = None):
        shape = Drawn(branching_nodes(branching), Contract.IID)
        stop = Stop(shape.depth)
        rules = [*exact_rules(trees=True), "recursive_with_replacement"]
        super().__init__(ModelDraft(shape, stop), rule=rule, rules=rules, stop=stop)
