"""One sequence on one model: its fed tokens, its KV cache, and the forward over new rows.

Words: a session has *fed* `length` tokens (they are in the cache). During decoding the target's last committed token is
*pending*: emitted, but not fed yet. `forward(tree)` feeds pending and drafts in one go; `commit(verdict)` keeps the accepted
path and makes the target's own token the new pending one. So between rounds: length == committed - 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from specbench.engine.cache import KVCache
from specbench.engine.masks import build
from specbench.engine.model import Model
from specbench.engine.tree import DraftTree, Verdict

if TYPE_CHECKING:
    pass


class Session:
    """One sequence on one model. Reused from sample to sample: `start` forgets everything and keeps the buffers.

    taps: indices into transformers' hidden_states tuple (0 = embedding output, -1 = the LM head's input); when set, every
    forward also leaves `self.taps[index]` = [n, hidden] for its rows, and `commit` cuts them to root and accepted path.
    """

    def __init__(self, model: Model, taps: Sequence[int] = ()):
        self.model = model
        self.cache = KVCache(model.num_cache_layers)
        self.pending: int | None = None
        self.tap_layers = tuple(taps)
        self.taps: dict[int, torch.Tensor] = {}
        self._last_start = 0  # where the last forward's rows begin in the cache
        self._positions = torch.arange(0, device=model.device).unsqueeze(0)

    @property
    def length(self) -> int:
        """Number of tokens fed (in the cache)."""
        return self.cache.length

    def start(self, capacity: int) -> None:
        """A new sequence of at most `capacity` fed positions."""
        self.cache.reset()
        self.cache.reserve(capacity)
        self.pending = None
        self._last_start = 0
        if self._positions.shape[1] < capacity:
            self._positions = torch.arange(capacity, device=self.model.device).unsqueeze(0)

    @torch.inference_mode()
    def feed(self, ids: Sequence[int], parents: Sequence[int] | None = None, last_only: bool = False) -> torch.Tensor:
        """Append rows and return their logits [n, vocab] ([1, vocab] with last_only), on the model's device.

        parents: row index of each row's parent among the new rows, -1 = the sequence so far; None = a chain.
        Raises ValueError for a tree on a model that takes chains only.
        """
        model, past, rows = self.model, self.cache.length, len(ids)
        assert rows > 0, "nothing to feed"
        assert past + rows <= self._positions.shape[1], (
            f"session of {self._positions.shape[1]} positions asked for {past + rows}"
        )
        if parents is not None and model.tree_refusal is not None:
            raise ValueError(f"this model takes draft chains only: {model.tree_refusal}")
        if max(ids) >= model.num_rows:
            # A draft with fewer rows than its target: it cannot know this token, and a wrong guess costs acceptance only.
            ids = [i if i < model.num_rows else 0 for i in ids]
        input_ids = torch.tensor([ids], device=model.device)
        if parents is None:
            positions = self._positions[:, past : past + rows]
            depths: Sequence[int] = range(rows)
        else:
            depths = _depths(parents)
            positions = torch.tensor([[past + d for d in depths]], device=model.device)
        # An empty cache with a causal chain needs no explicit mask: the model's own causal path is right and fastest.
        mask = None
        if (past > 0 or parents is not None or model.plan.window is not None) and model.plan.needs_mask(past, rows):
            mask = build(model.plan, past, depths, parents, model.dtype, model.device)
        extra: dict[str, Any] = {"logits_to_keep": 1} if last_only and model.accepts_logits_to_keep else {}
        if self.tap_layers:
            extra["output_hidden_states"] = True
        output = model.module(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            **extra,
        )
        self._last_start = past
        if self.tap_layers:
            self.taps = {layer: output.hidden_states[layer][0] for layer in self.tap_layers}
        logits = output.logits[0]
        if last_only:
            logits = logits[-1:]
        return logits[:, : model.vocab_size] if logits.shape[1] != model.vocab_size else logits

    def rollback(self, length: int) -> None:
        """Forget every fed token from `length` on (O(1))."""
        self.cache.rollback(length)

    # The canonical round of a target.

    def prefill(self, prompt_ids: Sequence[int]) -> torch.Tensor:
        """Feed the whole prompt; logits [1, vocab] after its last token. The caller's choice becomes `pending`."""
        return self.feed(prompt_ids, last_only=True)

    def forward(self, tree: DraftTree) -> torch.Tensor:
        """Feed pending and the tree's nodes: logits [1 + N, vocab], row 0 after pending, row i + 1 after node i."""
        assert self.pending is not None, "prefill first"
        ids = [self.pending, *tree.tokens]
        if tree.parents is None:
            return self.feed(ids)
        return self.feed(ids, parents=[-1, *(parent + 1 for parent in tree.parents)])

    def commit(self, verdict: Verdict) -> None:
        """Keep pending and the accepted path in the cache; the verdict's last token is pending next."""
        rows = [0, *(node + 1 for node in verdict.path)]
        self.cache.keep_rows(self._last_start, rows)
        if self.tap_layers:
            self.taps = {layer: hidden[rows] for layer, hidden in self.taps.items()}
        self.pending = verdict.extra


def _depths(parents: Sequence[int]) -> list[int]:
    depths: list[int] = []
    for parent in parents:
        depths.append(0 if parent < 0 else depths[parent] + 1)
    return depths
