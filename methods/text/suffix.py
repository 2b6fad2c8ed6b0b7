"""SuffixDecoding (Oliaro et al. 2411.04975): what followed the longest suffixes of the text before, as far as counts are sure.

Two indices hold every substring with its number of occurrences: one of the request's prompt and output, one of the outputs of
earlier requests. In both, every suffix of the text that stood before (up to `max_depth` tokens) is a candidate: below it a tree
is grown, the likeliest continuations first, where a node's probability is the product of the shares of its path; the longer the
suffix, the more may be drafted (`factor` nodes per token of it). The tree whose probabilities have the greatest sum is drafted:
a long match is trusted far, a short one is not. Nothing is drawn by chance, so every rule that takes a fixed set is exact.

Of the paper are the two indices, the score and the length by match; from the authors' engine the least probability (0.1) and a
depth of 24 (in the paper 64). Ours: suffix automata in place of suffix trees (substrings that always end together share a
state, so that only suffixes which differ in what followed are grown, longest first, until no shorter one could score more);
`factor` 4 (in the engine 1: counted on refactoring prompts, it emits a seventh more per round for four more rows); `num_nodes`
caps a round; the earlier outputs are cut to `kept_tokens`, the oldest first. The earlier outputs make the order of prompts
part of the result; `scope: sample` keeps none (cold).
"""

from __future__ import annotations

import math

from specbench.method import (
    Drafter,
    DraftTree,
    Evidence,
    Feedback,
    Method,
    Needs,
    Request,
    Rule,
    Setting,
    exact_rules,
    number,
    one_of,
    whole,
)
from specbench.parts.drafts.kept import KeptTexts
from specbench.parts.drafts.suffix import Follower, SuffixAutomaton
from specbench.parts.shapes.likeliest import Likeliest, grow_likeliest


class Suffix(Method):
    """num_nodes: drafted per round at most. max_depth: longest suffix that is looked for, and tokens drafted in depth.

    factor: nodes per token of the matched suffix. min_probability: of a path that is drafted. scope: session (earlier outputs
    count) | sample. kept_tokens: of earlier outputs. rule: greedy_match | sample_match | delta; null = match.
    """

    def __init__(
        self,
        *,
        num_nodes: int = 24,
        max_depth: int = 24,
        factor: float = 4.0,
        min_probability: float = 0.1,
        scope: str = "session",
        kept_tokens: int = 100_000,
        rule: str | Rule | None = None,
    ):
        whole("method.num_nodes", num_nodes, 1)
        whole("method.max_depth", max_depth, 1)
        number("method.factor", factor, 0.0, math.inf, "a number from 0 up")
        number("method.min_probability", min_probability, 0.0, 1.0, "a number from 0 to 1")
        one_of("method.scope", scope, "session", "sample")
        whole("method.kept_tokens", kept_tokens, 1)
        drafter = SuffixDraft(num_nodes, max_depth, factor, min_probability, kept_tokens if scope == "session" else 0)
        super().__init__(drafter, rule=rule, rules=exact_rules(trees=True))


class SuffixDraft(Drafter):
    """own: the index of the request's text; kept: of earlier outputs, and `found` is where the text's end stands in it."""

    source, form = "text", "tree"

    def __init__(self, num_nodes: int, max_depth: int, factor: float, min_probability: float, kept_tokens: int):
        self.num_nodes, self.max_depth, self.factor, self.min_probability = num_nodes, max_depth, factor, min_probability
        self.needs = Needs(scope="session" if kept_tokens else "sample")
        self.kept, self.own = KeptTexts(kept_tokens), SuffixAutomaton()

    @property
    def max_nodes(self) -> int:
        return self.num_nodes

    def open(self, setting: Setting) -> None:
        self.branches = setting.runtime.target.tree_refusal is None

    def reset(self) -> None:
        self.kept.clear()

    def begin(self, request: Request, first_token: int, evidence: Evidence) -> None:
        self.kept.begin(request, first_token)
        text = [*request.prompt_ids, first_token]
        self.own = SuffixAutomaton(text)
        self.found = Follower(self.kept.index, text[-self.max_depth :])

    def propose(self, max_depth: int) -> DraftTree:
        best = Likeliest()
        own, found = self.own, self.found
        for index, state, match in ((own, own.last, own.match), (found.automaton, found.state, found.length)):
            if index is own and index.count[state] == 1:
                state = index.link[state]  # where the text stood before
            for suffix, length in index.suffixes(state, match, self.max_depth):
                budget = min(int(self.factor * length), self.num_nodes)
                if budget <= best.score:  # no probability is above 1, and shorter ones may draft less still
                    break
                depth = min(max_depth, self.max_depth)
                tree = grow_likeliest(suffix, index.children, budget, depth, self.min_probability, self.branches)
                if tree.score > best.score:
                    best = tree
        return best.draft()

    def observe(self, feedback: Feedback) -> None:
        tokens = feedback.verdict.tokens
        self.kept.add(tokens)
        self.own.extend(tokens)
        self.found.follow(tokens)

    def memory_bytes(self) -> dict[str, int]:
        return {"text_index": self.own.nbytes + self.kept.index.nbytes}
