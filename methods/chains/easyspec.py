"""EasySpec: the draft's layers side by side (Wu et al. 2502.02493, NeurIPS 2025).

Of `layer_parallel` consecutive layers of the draft all attentions read the same hidden states, so that as many devices could
compute them at once (`engine.side_by_side`); the first and last `exact_ends` layers stay as they are. Behind a verdict all keys
and values that were made so are forgotten, and one ordinary forward over accepted tokens and bonus, whose logits begin the next
draft, calibrates the cache: errors never pile up.

What is real here and what is not: drafts, and so acceptance by `layer_parallel`, are computed as the paper's; the output is the
target's under every rule. The time is not: the layers of a group run one after another, and every round books what passed. What
the fuzzy forwards would take with a device for each attention is simulated: `simulated_fuzzy_draft_seconds` beside
`fuzzy_draft_seconds`, in `counted`; transfers between devices are not in it. No speed-up of a run rests on it.

What deviates: chains (the paper also drafts trees), one process and one device. The draft runs on transformers' forward, on
every backend. With too few layers for a group the draft is exact, and `run.json` says layer_groups none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from specbench.engine.session import Session
from specbench.engine.side_by_side import SideBySide, groups_of
from specbench.method import (
    MOST_NODES,
    Chain,
    ConfigError,
    Evidence,
    Feedback,
    Method,
    ModelDraft,
    Request,
    Rule,
    Setting,
    Stop,
    exact_rules,
    make_stop,
    whole,
)


class EasySpec(Method):
    """draft_length: tokens drafted per round. layer_parallel: layers whose attentions read the same input (published: 4).

    exact_ends: layers at either end of the draft that stay out of it (published: 1). stop: a name or a node (docs/options.md).
    rule: greedy_match | sample_match | delta | ratio; null = match, by temperature.
    """

    def __init__(
        self,
        *,
        draft_length: int = 4,
        layer_parallel: int = 4,
        exact_ends: int = 1,
        stop: str | Stop | None = None,
        rule: str | Rule | None = None,
    ):
        whole("method.draft_length", draft_length, 1, high=MOST_NODES)
        whole("method.layer_parallel", layer_parallel, 1, high=MOST_NODES)
        whole("method.exact_ends", exact_ends, 0, high=MOST_NODES)
        stop = make_stop(stop, draft_length)
        rules = [*exact_rules(trees=False), "ratio"]
        drafter = FuzzyDraft(stop, layer_parallel, exact_ends)
        super().__init__(drafter, rule=rule, rules=rules, stop=stop, draft_length=draft_length)


class FuzzyDraft(ModelDraft):
    """The first token of a draft from an exact forward, the one that calibrates; the others from fuzzy ones."""

    source = "model, layers side by side"

    def __init__(self, stop: Stop, layer_parallel: int, exact_ends: int):
        super().__init__(Chain(), stop)
        self.layer_parallel, self.exact_ends = layer_parallel, exact_ends

    def open(self, setting: Setting) -> None:
        super().open(setting)
        self.session = Session(replace(self.model, native=None), self.stop.draft_taps)
        self.groups = groups_of(self.model.num_cache_layers, self.layer_parallel, self.exact_ends)
        try:
            self.fuzzy = SideBySide(self.session, self.groups)
        except ValueError as error:
            draft = setting.runtime.pair.draft
            raise ConfigError("pair.draft", None if draft is None else draft.name, str(error)) from error

    def begin(self, request: Request, first_token: int, evidence: Evidence) -> None:
        super().begin(request, first_token, evidence)
        self.calibrated = self.session.length
        self.fuzzy.forget_times()
        self.num_fuzzy = 0

    def root(self) -> Tensor:
        logits = super().root()
        self.calibrated = self.session.length
        return logits

    def next(self, tokens: Sequence[int], parents: Sequence[int]) -> Tensor:
        self.num_forwards += 1
        self.num_fuzzy += 1
        return self.fuzzy.feed(tokens, last_only=True)

    def observe(self, feedback: Feedback) -> None:
        super().observe(feedback)
        self.session.rollback(min(self.session.length, self.calibrated))

    def counted(self) -> dict[str, float]:
        real, simulated = self.fuzzy.seconds()
        return {"fuzzy_forwards": self.num_fuzzy, "fuzzy_draft_seconds": real, "simulated_fuzzy_draft_seconds": simulated}

    def facts(self) -> dict[str, float | int | str]:
        named = ", ".join(f"{group[0]}-{group[-1]}" for group in self.groups)
        return {"layer_groups": named or "none", "draft_time": "simulated_* of counted: simulated; all else as it passed"}
