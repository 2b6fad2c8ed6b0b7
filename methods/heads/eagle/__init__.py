"""EAGLE: drafting on the level of features, with dynamic trees (Li et al. 2401.15077; EAGLE-2, 2406.16858).

One decoder layer continues the target's last hidden states (features), each beside the embedding of the token that was chosen
there, and the target's own LM head turns its predictions into tokens (`heads`). A round grows a tree level by level where the
draft is confident and keeps its best `num_nodes` nodes. After the verdict everything computed from guessed features is
forgotten and the accepted path is fed again with the target's true ones; that forward also gives the next root's children.

The trees are deterministic, so they are exact under greedy_match, sample_match and delta; the first paper's sampled trees under
a ratio rule are not offered. At a temperature, under sample_match, the draft ranks tokens by its logits plus the target's own
keyed noise: the token that the target will choose is then among its first ones far more often than the likeliest tokens are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from specbench.engine.ranks import likeliest
from specbench.method import (
    EMPTY,
    MOST_NODES,
    WIDEST,
    Choice,
    ConfigError,
    Drafter,
    DraftTree,
    Dynamic,
    Evidence,
    Feedback,
    Method,
    Needs,
    PairSpec,
    Request,
    Rule,
    Setting,
    Stop,
    exact_rules,
    make_stop,
    whole,
)
from specbench.methods.heads.eagle.draft import FeatureDraft
from specbench.methods.heads.eagle.heads import EagleHeads
from specbench.parts.heads.files import shown
from specbench.parts.heads.stored import look_up_heads, open_heads
from specbench.parts.shapes.cost import measure_costs
from specbench.parts.shapes.static import fastest_tree, seconds_of_rows

TAP = -1  # the LM head's input


class Eagle(Method):
    """draft_length: levels of the tree at most. top_k: children of an expanded node, and nodes expanded per level (1: a chain).

    num_nodes: nodes shown to the target per round, or "auto": these and the number of levels are then what the heads' measured
    accuracies, the measured cost of rows and the time that a level takes on this machine make right.
    heads: folder of the trained layer, builtin:<part> or Hub repository; null: the built-in pair's. stop: caps the levels of a
    round. rule: greedy_match | sample_match | delta; null = match. Raises ConfigError for values out of range.
    """

    heads_class = EagleHeads

    def __init__(
        self,
        *,
        draft_length: int = 6,
        top_k: int = 8,
        num_nodes: int | str = "auto",
        heads: str | None = None,
        stop: str | Stop | None = None,
        rule: str | Rule | None = None,
    ):
        whole("method.draft_length", draft_length, 1, high=MOST_NODES)
        whole("method.top_k", top_k, 1, high=WIDEST)
        whole("method.num_nodes", num_nodes, 1, auto=True, high=MOST_NODES)
        drafter = EagleDraft(heads, draft_length, top_k, num_nodes)
        stop = make_stop(stop, draft_length, at_once=True)
        super().__init__(drafter, rule=rule, rules=exact_rules(trees=True), stop=stop, draft_length=draft_length)


class EagleDraft(Drafter):
    """The trained layer as a source, and the dynamic tree that grows on it."""

    needs = Needs(taps=(TAP,))
    source, form = "heads", "dynamic tree"

    def __init__(self, heads: str | None, draft_length: int, top_k: int, num_nodes: int | str):
        self.heads_name, self.draft_length, self.top_k, self.num_nodes = heads, draft_length, top_k, num_nodes
        self.size = num_nodes if isinstance(num_nodes, int) else 0  # nodes per round; an automatic one is settled in `open`
        self.levels = draft_length  # as is the number of levels then
        self._facts: dict[str, float | int | str] = {}

    @property
    def max_nodes(self) -> int:
        return self.size

    def look_up(self, pair: PairSpec) -> dict[str, Path]:
        return look_up_heads(EagleHeads, self.heads_name, pair.target)

    def open(self, setting: Setting) -> None:
        runtime, self.target = setting.runtime, setting.target
        if self.top_k > 1 and runtime.target.tree_refusal is not None:
            raise ConfigError(
                "method.top_k", self.top_k, f"the target takes chains only ({runtime.target.tree_refusal}); use 1"
            )
        self.heads, folder = open_heads(EagleHeads, self.heads_name, runtime)
        make = FeatureDraft
        if runtime.target.native is not None:
            from specbench.methods.heads.eagle.native import NativeFeatureDraft

            make = NativeFeatureDraft
        self.draft = make(self.heads, min(runtime.target.vocab_size, self.heads.target.vocab_size))
        self._facts = {"heads": shown(self.heads_name, folder)}
        self.settle()
        self.choice = Choice(runtime.law, setting.rule, runtime.target.vocab_size, self.draft.device)

    def settle(self) -> None:
        if self.num_nodes == "auto":
            self.size, self.levels = self._measured_size(self.heads.calibration.get("accuracies"))
        self.shape, self.stop = Dynamic(self.top_k, self.size), Stop()

    def _measured_size(self, accuracies: list[list[float]] | None) -> tuple[int, int]:
        """Nodes and levels that emit most tokens per second if the tree were a static one of these accuracies.

        A dynamic tree of that size and depth is worth no less, and a level that is not grown costs nothing.
        Raises ConfigError for heads whose accuracies nobody measured.
        """
        if not accuracies:
            raise ConfigError("method.num_nodes", "auto", "these heads came without measured accuracies: give a number")
        accuracies = [row[: self.top_k] for row in accuracies[: self.draft_length]]
        steps = [partial(self._draft_once, levels) for levels in range(1, len(accuracies) + 1)]
        costs, draft_costs = measure_costs(self.target, steps)
        rounds = [
            {nodes: seconds + seconds_of_rows(costs, 1 + nodes) for nodes in range(1, max(costs))} for seconds in draft_costs
        ]
        best = fastest_tree(accuracies, costs[1], rounds)
        size, levels = max(1, len(best.nodes)), max(map(len, best.nodes), default=1)
        self._facts |= {
            "num_nodes": size,
            "levels": levels,
            # 0: by these measurements no tree beats plain decoding; one node is drafted all the same
            "best_num_nodes": len(best.nodes),
            "expected_accepted_per_round": round(best.expected_accepted, 3),  # of a static tree
            "draft_seconds": draft_costs[levels - 1],
            **{f"seconds_of_{rows}_rows": seconds for rows, seconds in costs.items()},
        }
        return size, levels

    @torch.inference_mode()
    def _draft_once(self, levels: int) -> None:
        """What drafting a whole tree of that many levels costs at most, in calls of the layer and the LM head."""
        width, features = min(self.top_k, self.draft.vocab_size), torch.zeros(2, self.draft.heads.target.width)
        self.draft.start(2 + width * levels)
        features = self.draft.extend(features, [0, 0])
        for level in range(levels):
            likeliest(self.draft.logits(features), width)
            if level + 1 < levels:
                features = self.draft.descend(features.expand(width, -1), [0] * width, range(width))

    def begin(self, request: Request, first_token: int, evidence: Evidence) -> None:
        self.prompt_length = len(request.prompt_ids)
        self.num_committed = self.prompt_length + 1
        most_rows = self.prompt_length + request.max_new_tokens + self.draft_length + 1
        self.draft.start(most_rows + min(self.top_k, self.size) * self.draft_length)
        self.num_true = 0  # rows of the draft's cache that were computed from the target's own features
        # Row t is fed the feature after token t and the token behind it; the last one's is the pending token.
        self._feed(evidence.taps[TAP], (*request.prompt_ids[1:], first_token))
        self.unfed: tuple[Tensor, tuple[int, ...]] | None = None
        self.choice.begin(request)

    def observe(self, feedback: Feedback) -> None:
        if self.unfed is not None:  # a round without a draft in between
            self._feed(*self.unfed)
        self.num_committed += len(feedback.verdict.tokens)
        # Fed when the next draft begins, so that its time is counted as drafting.
        self.unfed = (feedback.tap(TAP, only=False), feedback.verdict.tokens)

    def _feed(self, features: Tensor, tokens: tuple[int, ...]) -> None:
        """Feed the target's own features [n or more, width] and the n tokens chosen there, in place of what was guessed."""
        self.draft.rollback(self.num_true)
        self.features = self.draft.extend(features, tokens)
        self.num_true = self.draft.length

    def propose(self, max_depth: int) -> DraftTree:
        depth = min(self.levels, max_depth)
        if depth < 1:
            return EMPTY
        forwards = self.draft.num_forwards
        tree = self.shape.grow(self, depth, self.choice, self.num_committed - self.prompt_length, self.stop)
        tree.num_forwards = self.draft.num_forwards - forwards
        tree.lead_with_first_path()
        return tree

    # As a source.

    num_forwards = 0  # the layer counts its own calls

    def root(self) -> Tensor:
        if self.unfed is not None:
            self._feed(*self.unfed)
            self.unfed = None
        self.last = self.features  # predictions of the last level; self.features: the root's
        self.first_of_level = -1  # the number of its first node
        self.num_given = 0
        return self.draft.logits(self.last)

    def next(self, tokens: Sequence[int], parents: Sequence[int]) -> Tensor:
        rows = [parent - self.first_of_level for parent in parents]
        above = self.last if len(self.last) == len(rows) == 1 else self.last[rows]
        self.first_of_level, self.num_given = self.num_given, self.num_given + len(tokens)
        self.last = self.draft.descend(above, tokens, rows)
        return self.draft.logits(self.last)

    def memory_bytes(self) -> dict[str, int]:
        heads = sum(p.numel() * p.element_size() for p in self.draft.heads.parameters())
        return {"draft_kv": self.draft.nbytes, "heads_weights": heads}

    def facts(self) -> dict[str, float | int | str]:
        return self._facts
