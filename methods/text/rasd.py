"""RASD (Quan et al. 2503.03434): a draft model's tree and a tree of what followed in the text, fused and verified together.

The draft model grows its tree as usual. What followed the longest end of the text that stood before makes a second one, the
likeliest continuations by counts. It is pruned by the draft model: where the model has been asked about a node's parent, the
node stays if its probability there is at least `min_probability`; below what it was asked about a path that came through stays
whole. The two are merged by their common beginnings, and the target verifies one tree. Its nodes come from two sources, so it
is a fixed set and the match rules and `delta` are exact.

The paper's fusion and pruning by the draft's probabilities; its threshold, numbers and budgets are not known, so these are
ours, as is the source (prompt and output, by a suffix automaton; theirs is that or a datastore) and the draft (the pair's
model with EAGLE-2's dynamic tree; theirs is EAGLE).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from specbench.engine.ranks import log_total, score_of
from specbench.method import (
    MOST_NODES,
    WIDEST,
    DraftTree,
    Dynamic,
    Evidence,
    Feedback,
    Method,
    ModelDraft,
    Request,
    Rule,
    Shape,
    Stop,
    exact_rules,
    make_stop,
    number,
    whole,
)
from specbench.parts.drafts.suffix import SuffixAutomaton
from specbench.parts.shapes.likeliest import Likeliest, grow_likeliest


class Rasd(Method):
    """draft_length: levels of the model's tree. top_k, num_nodes: of it. num_retrieved: nodes of the text's tree at most.

    min_match: of the end of the text that is trusted. min_probability: of a retrieved token, by the draft model. stop: fixed |
    heuristic, or a node with a budget. rule: greedy_match | sample_match | delta; null = match.
    """

    def __init__(
        self,
        *,
        draft_length: int = 4,
        top_k: int = 4,
        num_nodes: int = 12,
        num_retrieved: int = 12,
        min_match: int = 2,
        min_probability: float = 0.01,
        stop: str | Stop | None = None,
        rule: str | Rule | None = None,
    ):
        for name, value in (("draft_length", draft_length), ("num_nodes", num_nodes), ("num_retrieved", num_retrieved)):
            whole(f"method.{name}", value, 1, high=MOST_NODES)
        whole("method.top_k", top_k, 2, high=WIDEST)
        whole("method.min_match", min_match, 1, high=MOST_NODES)
        number("method.min_probability", min_probability, 0.0, 1.0, "a number from 0 to 1")
        stop = make_stop(stop, draft_length, at_once=True)
        drafter = FusedDraft(Dynamic(top_k, num_nodes), stop, num_retrieved, min_match, min_probability)
        super().__init__(drafter, rule=rule, rules=exact_rules(trees=True), stop=stop, draft_length=draft_length)


class FusedDraft(ModelDraft):
    """said: logits and row of what the model said after the pending token, and after each of the rows grown behind it."""

    source = "model and text"

    def __init__(self, shape: Shape, stop: Stop, num_retrieved: int, min_match: int, min_probability: float):
        super().__init__(shape, stop)
        self.num_retrieved, self.min_match = num_retrieved, min_match
        self.said: list[tuple[Tensor, int]] = []
        self.least = math.log(min_probability) if min_probability else -math.inf

    @property
    def max_nodes(self) -> int:
        return super().max_nodes + self.num_retrieved

    def begin(self, request: Request, first_token: int, evidence: Evidence) -> None:
        super().begin(request, first_token, evidence)
        self.index, self.end = SuffixAutomaton(self.tokens), self.prompt_length + request.max_new_tokens

    def root(self) -> Tensor:
        logits = super().root()
        self.said = [(logits, 0)]
        return logits

    def next(self, tokens: Sequence[int], parents: Sequence[int]) -> Tensor:
        logits = super().next(tokens, parents)
        self.said += [(logits, row) for row in range(len(tokens))]
        return logits

    def propose(self, max_depth: int) -> DraftTree:
        tree, room = super().propose(max_depth), self.end - len(self.tokens) - 1
        if not tree.tokens or self.index.match < self.min_match:
            return tree
        state = self.index.link[self.index.last]
        found = grow_likeliest(state, self.index.children, self.num_retrieved, min(room, self.num_retrieved))
        return self._fused(tree, found)

    def _fused(self, tree: DraftTree, found: Likeliest) -> DraftTree:
        """The drafted tree, and below its nodes what came through of the retrieved one."""
        assert tree.parents is not None
        tokens, parents = list(tree.tokens), list(tree.parents)
        place = {key: node for node, key in enumerate(zip(parents, tokens, strict=True))}
        came: dict[int, tuple[int, int | None]] = {-1: (-1, -1)}  # retrieved: fused, and which the model was asked about
        least: dict[int, float] = {}  # what a token's logit must be, by what the model was asked about
        for node, (token, parent) in enumerate(zip(found.tokens, found.parents, strict=True)):
            if parent not in came:
                continue
            above, asked = came[parent]
            if asked is not None:
                logits, row = self.said[asked + 1]
                if asked not in least:
                    least[asked] = log_total(logits, row) + self.least
                if token >= logits.shape[1] or score_of(logits, row, token) < least[asked]:
                    continue
                asked = self.grown.get((asked, token))
            key = above, token
            if key not in place:
                place[key] = len(tokens)
                tokens.append(token)
                parents.append(above)
            came[node] = place[key], asked
        if len(tokens) == len(tree.tokens):
            return tree
        fused = DraftTree(tokens, parents, num_forwards=tree.num_forwards, phase="fused", by_stop=False)
        fused.lead_with_first_path()  # which goes on below the draft's
        return fused

    def observe(self, feedback: Feedback) -> None:
        super().observe(feedback)
        self.index.extend(feedback.verdict.tokens)

    def memory_bytes(self) -> dict[str, int]:
        return {**super().memory_bytes(), "text_index": self.index.nbytes}
