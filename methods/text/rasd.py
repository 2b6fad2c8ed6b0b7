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
            whole(f"method.{name}", value, 1)
        whole("method.top_k", top_k, 2)
        whole("method.min_match", min_match, 1)
        number("method.min_probability", min_probability, 0.0, 1.0, "a number from 0 to 1")
        stop = make_stop(stop, draft_length, at_once=True)
        drafter = FusedDraft(Dynamic(top_k, num_nodes), stop, num_retrieved, min_match, min_probability)
        super().__init__(drafter, rule=rule, rules=exact_rules(trees=True), stop=stop, draft_length=draft_length)


class FusedDraft(ModelDraft):
    """said: by forward of the round, what the model said, and after which nodes of which parents: see `Source.next`."""

    source = "model and text"

    def __init__(self, shape: Shape, stop: Stop, num_retrieved: int, min_match: int, min_probability: float):
        super().__init__(shape, stop)
        self.num_retrieved, self.min_match = num_retrieved, min_match
        self.said: list[tuple[Tensor, Sequence[int], Sequence[int]]] = []
        self.least = math.log(min_probability) if min_probability else -math.inf

    @property
    def max_nodes(self) -> int:
        return super().max_nodes + self.num_retrieved

    def begin(self, request: Request, first_token: int, evidence: Evidence) -> None:
        super().begin(request, first_token, evidence)
        self.index, self.end = SuffixAutomaton(self.tokens), self.prompt_length + request.max_new_tokens

    def root(self) -> Tensor:
        logits = super().root()
        self.said = [(logits, [], [])]
        return logits

    def next(self, tokens: Sequence[int], parents: Sequence[int]) -> Tensor:
        logits = super().next(tokens, parents)
        self.said.append((logits, tokens, parents))
        return logits

    def _heard(self) -> dict[tuple[int, ...], tuple[Tensor, int]]:
        """Logits and row of what the model said after the pending token and each node that it was asked about, by paths."""
        (logits, *_), *levels = self.said
        heard: dict[tuple[int, ...], tuple[Tensor, int]] = {(): (logits, 0)}
        paths: list[tuple[int, ...]] = []
        for logits, tokens, parents in levels:
            new = [(*(paths[parent] if parent >= 0 else ()), token) for token, parent in zip(tokens, parents, strict=True)]
            heard |= {path: (logits, row) for row, path in enumerate(new)}
            paths += new
        return heard

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
        paths: list[tuple[int, ...]] = []
        for token, parent in zip(tokens, parents, strict=True):
            paths.append((*(paths[parent] if parent >= 0 else ()), token))
        place = {path: node for node, path in enumerate(paths)} | {(): -1}
        came: dict[int, tuple[int, ...]] = {-1: ()}
        heard = self._heard()
        least: dict[tuple[int, ...], float] = {}  # what a token's logit must be, by the path above it
        for node, (token, parent) in enumerate(zip(found.tokens, found.parents, strict=True)):
            above = came.get(parent)
            if above is None:
                continue
            if above in heard:
                logits, row = heard[above]
                if above not in least:
                    least[above] = log_total(logits, row) + self.least
                if token >= logits.shape[1] or score_of(logits, row, token) < least[above]:
                    continue
            came[node] = (*above, token)
            if came[node] not in place:
                place[came[node]] = len(tokens)
                tokens.append(token)
                parents.append(place[above])
        if len(tokens) == len(tree.tokens):
            return tree
        return DraftTree(tokens, parents, num_forwards=tree.num_forwards, phase="fused", by_stop=False)

    def observe(self, feedback: Feedback) -> None:
        super().observe(feedback)
        self.index.extend(feedback.verdict.tokens)

    def memory_bytes(self) -> dict[str, int]:
        return {**super().memory_bytes(), "text_index": self.index.nbytes}
