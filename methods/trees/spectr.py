"""SpecTr (Sun et al. 2310.15141): several chains from one draft model, selected token by token by k-SEQ.

`num_chains` sequences of `draft_length` tokens are drawn i.i.d. below the pending token. The rule walks all chains that agree
with what was accepted: of k such chains, duplicates included, the first whose token passes a coin of min(1, p / (rho q))
stands, with the smallest rho that keeps the law (`k_seq`; the paper's algorithm 3, at least 1 - 1/e of the optimal acceptance).
One chain is speculative decoding. Lossless: in law under `k_seq` and `delta`; token for token under the match rules, where
the chains begin with the `num_chains` likeliest tokens and go on greedily, since equal chains would be lost rows.

The paper's rows are separate sequences; here they are one tree whose chains share the text, so that one forward does for all.
Chains that drew the same tokens stay rows of their own, because the rule counts draws.
"""

from __future__ import annotations

from specbench.method import MOST_NODES, Contract, Drawn, Method, ModelDraft, Rule, Stop, branching_nodes, exact_rules, whole


class SpecTr(Method):
    """num_chains: K. draft_length: tokens of each chain. rule: greedy_match | sample_match | delta | k_seq; null = match."""

    def __init__(self, *, num_chains: int = 4, draft_length: int = 4, rule: str | Rule | None = None):
        whole("method.num_chains", num_chains, 1, high=MOST_NODES)
        whole("method.draft_length", draft_length, 1, high=MOST_NODES)
        shape = Drawn(branching_nodes([num_chains, *[1] * (draft_length - 1)], "method.num_chains"), Contract.IID)
        stop = Stop(draft_length)
        rules = [*exact_rules(trees=True), "k_seq"]
        super().__init__(ModelDraft(shape, stop), rule=rule, rules=rules, stop=stop, draft_length=draft_length)
