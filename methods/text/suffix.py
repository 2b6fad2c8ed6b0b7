"""SuffixDecoding (Oliaro et al. 2411.04975): what followed the longest suffixes of the text before, as far as counts are sure.

Two indices hold every substring with its number of occurrences: one of the request's prompt and output, one of the outputs of
earlier requests. In both, every suffix of the text that stood before (up to `max_depth` tokens) is a candidate: below it a tree
is grown, the likeliest continuations first, where a node's probability is the product of the shares of its path; the longer the
suffix, the more may be drafted (`factor` nodes per token of it). The tree whose probabilities have the greatest sum is drafted:
a long match is trusted far, a short one is not. Nothing is drawn by chance, so every rule that takes a fixed set is exact.

That is `num_nodes: <a number>`. The paper's score takes rows for free, which they are on its accelerators. `num_nodes: auto`,
the default and ours, weighs them: a node's chance is how often guesses with such a share behind such a match were right so
far, and of all suffixes the tree with most tokens per second is drafted, by the seconds that a forward of so many rows was
measured to take here (`parts.shapes.worth`; `factor` and `min_probability` have no part in it). Of each index the three longest
suffixes are looked at.

Of the paper are the two indices, the score and the length by match; from the authors' engine the least probability (0.1) and a
depth of 24 (in the paper 64). Ours: suffix automata in place of suffix trees (substrings that always end together share a
state, so that only suffixes which differ in what followed are grown, longest first, until no shorter one could score more);
`factor` 4 (in the engine 1: counted on refactoring prompts, it emits a seventh more per round for four more rows); a number of
nodes caps a round (24 with auto); the earlier outputs are cut to `kept_tokens`, the oldest first. The earlier outputs make the
order of prompts part of the result; `scope: sample` keeps none (cold).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterator
from functools import partial

from specbench.method import (
    MOST_KEPT,
    MOST_NODES,
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
from specbench.parts.shapes.worth import Worth

AUTO_NODES = 24  # weighed at most
SUFFIXES = 3  # of an index that are weighed
Place = tuple[tuple[int, int], Hashable]  # a state and the length of what matches there, and the kind of guess that led to it
_PRIOR = 0.65  # of a share that nothing is known of yet: a count is more sure of itself than it is right


class Suffix(Method):
    """num_nodes: drafted per round at most, or auto (by costs and success). max_depth: longest suffix that is looked for, and
    tokens drafted in depth. With a number of nodes, factor: nodes per token of the matched suffix; min_probability: of a path
    that is drafted. scope: session (earlier outputs count) | sample. kept_tokens: of earlier outputs.

    rule: greedy_match | sample_match | delta; null = match.
    """

    def __init__(
        self,
        *,
        num_nodes: int | str = "auto",
        max_depth: int = 24,
        factor: float = 4.0,
        min_probability: float = 0.1,
        scope: str = "session",
        kept_tokens: int = 100_000,
        rule: str | Rule | None = None,
    ):
        whole("method.num_nodes", num_nodes, 1, auto=True, high=MOST_NODES)
        whole("method.max_depth", max_depth, 1, high=MOST_NODES)
        number("method.factor", factor, 0.0, math.inf, "a number from 0 up")
        number("method.min_probability", min_probability, 0.0, 1.0, "a number from 0 to 1")
        one_of("method.scope", scope, "session", "sample")
        whole("method.kept_tokens", kept_tokens, 1, high=MOST_KEPT)
        drafter = SuffixDraft(num_nodes, max_depth, factor, min_probability, kept_tokens if scope == "session" else 0)
        super().__init__(drafter, rule=rule, rules=exact_rules(trees=True))


class SuffixDraft(Drafter):
    """own: the index of the request's text; kept: of earlier outputs, and `found` is where the text's end stands in it."""

    source, form = "text", "tree"

    def __init__(self, num_nodes: int | str, max_depth: int, factor: float, min_probability: float, kept_tokens: int):
        self.worth = Worth(AUTO_NODES) if isinstance(num_nodes, str) else None
        self.num_nodes = AUTO_NODES if isinstance(num_nodes, str) else num_nodes
        self.max_depth, self.factor, self.min_probability = max_depth, factor, min_probability
        self.needs = Needs(scope="session" if kept_tokens else "sample")
        self.kept, self.own = KeptTexts(kept_tokens), SuffixAutomaton()

    @property
    def max_nodes(self) -> int:
        return self.num_nodes

    def open(self, setting: Setting) -> None:
        self.branches = setting.runtime.target.tree_refusal is None
        if self.worth is not None:
            self.worth.open(setting.target)

    def settle(self) -> None:
        if self.worth is not None:
            self.worth.settle()

    def reset(self) -> None:
        self.kept.clear()
        if self.worth is not None:
            self.worth.clear()

    def begin(self, request: Request, first_token: int, evidence: Evidence) -> None:
        if self.worth is not None:
            self.worth.begin()
            if self.needs.scope == "sample":
                self.worth.clear()
        self.kept.begin(request, first_token)
        text = [*request.prompt_ids, first_token]
        self.own = SuffixAutomaton(text)
        self.found = Follower(self.kept.index, text[-self.max_depth :])

    def propose(self, max_depth: int) -> DraftTree:
        depth = min(max_depth, self.max_depth)
        return (self._surest(depth) if self.worth is None else self._fastest(self.worth, depth)).draft()

    def _indices(self) -> Iterator[tuple[SuffixAutomaton, Iterator[tuple[int, int]]]]:
        """Both indices, with the states and lengths of the text's suffixes that stood before, the longest first."""
        own, found = self.own, self.found
        state = own.link[own.last] if own.count[own.last] == 1 else own.last  # where the text stood before
        yield own, own.suffixes(state, own.match, self.max_depth)
        yield found.automaton, found.automaton.suffixes(found.state, found.length, self.max_depth)

    def _surest(self, depth: int) -> Likeliest:
        """The paper's: the greatest sum of probabilities, by counts."""
        best = Likeliest()
        for index, suffixes in self._indices():
            for suffix, length in suffixes:
                budget = min(int(self.factor * length), self.num_nodes)
                if budget <= best.score:  # no probability is above 1, and shorter ones may draft less still
                    break
                tree = grow_likeliest(suffix, index.children, budget, depth, self.min_probability, self.branches)
                if tree.score > best.score:
                    best = tree
        return best

    def _fastest(self, worth: Worth, depth: int) -> Likeliest:
        """Most tokens per second, by what guesses of their kind were worth."""
        best, best_rate = Likeliest(), 0.0
        for index, suffixes in self._indices():

            def children(place: Place, index: SuffixAutomaton = index) -> Iterator[tuple[int, float, Place]]:
                (state, length), _ = place
                for token, share, below in index.children(state):
                    kind = (index is self.own, length if length < 4 else 1 + length.bit_length(), int(5 * share))
                    yield token, worth.chance(kind, _PRIOR * share), ((below, length + 1), kind)

            for suffix in itertools.islice(suffixes, SUFFIXES):
                root: Place = (suffix, None)
                tree, rate = worth.weigh(partial(grow_likeliest, root, children, self.num_nodes, depth, 0.0, self.branches))
                if rate > best_rate:
                    best, best_rate = tree, rate
        return best

    def observe(self, feedback: Feedback) -> None:
        tokens = feedback.verdict.tokens
        if self.worth is not None:
            self.worth.learn(tokens)
        self.kept.add(tokens)
        self.own.extend(tokens)
        self.found.follow(tokens)

    def memory_bytes(self) -> dict[str, int]:
        return {"text_index": self.own.nbytes + self.kept.index.nbytes}

    def facts(self) -> dict[str, float | int | str]:
        return {} if self.worth is None else self.worth.facts()
