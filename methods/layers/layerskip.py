"""LayerSkip's self-speculative decoding (Elhoushi et al. 2404.16710, ACL 2024): the target's first layers draft.

The first `exit_layer` layers, the final norm and the LM head say the next token; verification goes on from the hidden states
that they left, so no layer runs twice for a row and the cache is the target's own. What the paper trains into its targets
(layer dropout, early-exit loss) is the target's business: an ordinary target drafts badly from early layers, and stays exact.

Exact under the match rules and `delta`; under `ratio` tokens are drawn from the early exit's own law. Of ours: the default exit
(a third of the layers), and stops, which the paper has not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from specbench.engine.request import NOBODYS
from specbench.engine.session import Session
from specbench.method import (
    EMPTY,
    MOST_NODES,
    Chain,
    Choice,
    Drafter,
    DraftTree,
    Evidence,
    Feedback,
    Method,
    Needs,
    Request,
    Rule,
    Setting,
    Stop,
    exact_rules,
    make_stop,
    whole,
)


class LayerSkip(Method):
    """draft_length: tokens drafted per round. exit_layer: layers that draft; null: a third of the target's.

    stop: a name or a node (docs/options.md). rule: greedy_match | sample_match | delta | ratio; null = match.
    """

    def __init__(
        self,
        *,
        draft_length: int = 3,
        exit_layer: int | None = None,
        stop: str | Stop | None = None,
        rule: str | Rule | None = None,
    ):
        whole("method.draft_length", draft_length, 1, high=MOST_NODES)
        whole("method.exit_layer", exit_layer, 1, null="a third of the layers", high=MOST_NODES)
        stop = make_stop(stop, draft_length)
        rules = [*exact_rules(trees=False), "ratio"]
        super().__init__(ExitDraft(exit_layer, stop), rule=rule, rules=rules, stop=stop, draft_length=draft_length)


class ExitDraft(Drafter):
    """A `Source` on the target's own session: its lower layers run ahead, and verification takes their hidden states over."""

    source, form = "first layers", "chain"
    num_forwards = 0

    def __init__(self, exit_layer: int | None, stop: Stop):
        self.exit_layer, self.stop, self.shape = exit_layer, stop, Chain()
        self.needs = Needs(layers=(exit_layer or 1) + 1)  # one is left to verify with

    @property
    def max_nodes(self) -> int:
        return self.shape.max_nodes(self.stop.draft_length or 0)

    def open(self, setting: Setting) -> None:
        target, total = setting.target, setting.target.model.num_cache_layers
        assert isinstance(target, Session)
        self.target, self.exit = target, self.exit_layer or max(1, total // 3)
        assert self.exit < total, "a need"
        self.choice = Choice(setting.runtime.law, setting.rule, target.model.vocab_size, target.model.device)

    def begin(self, request: Request, first_token: int, evidence: Evidence) -> None:
        self.pending, self.num_output = first_token, 1
        self.choice.begin(request)

    def propose(self, max_depth: int) -> DraftTree:
        if max_depth < 1:
            return EMPTY
        return self._draft(max_depth, self.stop)

    def rehearsal(self, longest: int) -> Callable[[int], DraftTree]:
        self.begin(NOBODYS, 0, Evidence(torch.empty(0), {}))
        return lambda length: self._draft(length, Stop()) if length else EMPTY

    def _draft(self, max_depth: int, stop: Stop) -> DraftTree:
        tree = self.shape.grow(self, max_depth, self.choice, self.num_output, stop)
        tree.num_forwards = self.num_forwards
        self._run(tree.tokens[-1])  # the last draft has drafted nothing, and is verified as the others are
        tree.start_layer, tree.hidden = self.exit, torch.cat(self.rows)
        return tree

    def root(self) -> Tensor:
        self.rows: list[Tensor] = []
        self.num_forwards = 1
        return self.target.exit_logits(self._run(self.pending))

    def next(self, tokens: Sequence[int], parents: Sequence[int]) -> Tensor:
        self.num_forwards += 1
        return self.target.exit_logits(self._run(tokens[0]))

    def _run(self, token: int) -> Tensor:
        self.rows.append(self.target.run_layers([token], 0, self.exit))
        return self.rows[-1]

    def observe(self, feedback: Feedback) -> None:
        self.pending = feedback.verdict.extra
        self.num_output += len(feedback.verdict.tokens)

    def facts(self) -> dict[str, float | int | str]:
        return {"exit_layer": self.exit}
