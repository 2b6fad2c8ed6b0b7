"""One sequence on one model: its fed tokens, its KV cache, and the forward over new rows.

Words: a session has *fed* `length` tokens (they are in the cache). During decoding the target's last committed token is
*pending*: emitted, but not fed yet. `forward(tree)` feeds pending and drafts in one go; `commit(verdict)` keeps the accepted
path and makes the target's own token the new pending one. So between rounds: length == committed - 1.

This is transformers' own forward, the reference of every other backend (`engine.target`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from specbench.engine.cache import KVCache
from specbench.engine.layers import exit_logits, has_layers, view
from specbench.engine.masks import build
from specbench.engine.model import Model
from specbench.engine.tree import DraftTree, Evidence, Verdict

Mark = tuple[int | None, tuple[int, ...]]
"""Where a session stood: its pending token, and what each layer had seen."""


class Session:
    """One sequence on one model. Reused from sample to sample: `start` forgets everything and keeps the buffers.

    taps: indices into transformers' hidden_states tuple (0 = embedding output, -1 = the LM head's input) that every forward
    leaves in its evidence. cache, layers: of a session on a part of another one's model, whose cache it shares (`part`).
    """

    def __init__(self, model: Model, taps: Sequence[int] = (), cache: Any = None, layers: Sequence[int] | None = None):
        self.model = model
        self.cache: Any = cache if cache is not None else KVCache(model.num_cache_layers)  # or what a backend keeps instead
        self.layers = range(model.num_cache_layers) if layers is None else layers
        self.pending: int | None = None
        self.tap_layers = tuple(taps)
        self._tapped: dict[int, Tensor] = {}
        self._last_start = 0  # where the last forward's rows begin in the cache
        self._positions = torch.arange(0, device=model.device).unsqueeze(0)
        self._parts: dict[tuple[int, ...], Session] = {}

    @cached_property
    def can(self) -> frozenset[str]:
        """What may be asked of it: tree, taps, riders, logits (of all rows), layers (a range of them), fork."""
        able = {"taps", "logits"} | ({"tree", "riders"} if self.model.tree_refusal is None else set())
        return frozenset(able | ({"layers", "fork"} if has_layers(self.model) else set()))

    @property
    def length(self) -> int:
        """Number of tokens fed (in the cache of its first layer)."""
        return self.cache.lengths[self.layers[0]]

    @property
    def tapped(self) -> dict[int, Tensor]:
        """Hidden states [rows, width] of the last forward, by tap."""
        return self._tapped

    @property
    def nbytes(self) -> int:
        """Bytes allocated for keys and values."""
        return self.cache.nbytes

    def start(self, capacity: int) -> None:
        """A new sequence of at most `capacity` fed positions."""
        self.cache.reset()
        self.cache.reserve(capacity)
        self.pending = None
        self._last_start = 0
        if self._positions.shape[1] < capacity:
            self._positions = torch.arange(capacity, device=self.model.device).unsqueeze(0)

    def warm(self, rows: Sequence[int]) -> None:
        """Forwards of so many rows are about to be timed: a backend that prepares for them does so now."""

    @torch.inference_mode()
    def feed(
        self,
        ids: Sequence[int] | Tensor,
        *,
        last_only: bool = False,
        parents: Sequence[int] | None = None,
        depths: Sequence[int] | None = None,
    ) -> Tensor:
        """Append rows and return their logits [n, vocab] ([1, vocab] with last_only), on the model's device.

        ids: tokens, or what enters the first layer in their place, [n, width]. parents: row index of each row's parent among
        the new rows, -1 = the sequence so far; None = a chain. depths: places behind the sequence so far, by default those of
        the parents plus one. Raises ValueError for a tree on a model that takes chains only.
        """
        extra: dict[str, Any] = {"logits_to_keep": 1} if last_only and self.model.accepts_logits_to_keep else {}
        if self.tap_layers:
            extra["output_hidden_states"] = True
        output = self._call(self.model.module, ids, parents, depths, **extra)
        if self.tap_layers:
            self._tapped = {layer: output.hidden_states[layer][0] for layer in self.tap_layers}
        logits = output.logits[0]
        if last_only:
            logits = logits[-1:]
        return self.model.answer(logits, self._last_start, len(ids))

    def _call(
        self,
        module: Any,
        ids: Sequence[int] | Tensor,
        parents: Sequence[int] | None,
        depths: Sequence[int] | None,
        **extra: Any,
    ) -> Any:
        model, past, rows = self.model, self.length, len(ids)
        assert rows > 0, "nothing to feed"
        if parents is not None and model.tree_refusal is not None:
            raise ValueError(f"this model takes draft chains only: {model.tree_refusal}")
        if isinstance(ids, Tensor):
            extra["inputs_embeds"] = ids[None]
        else:
            extra["input_ids"] = torch.tensor([model.rows_of(ids)], device=model.device)
        if parents is None and depths is None:
            if self._positions.shape[1] < past + rows:  # a part: the whole session alone knows the capacity
                self._positions = torch.arange(2 * (past + rows), device=model.device).unsqueeze(0)
            positions = self._positions[:, past : past + rows]
            depths = range(rows)
        else:
            depths = depths if depths is not None else _depths(parents or ())
            positions = torch.tensor([[past + d for d in depths]], device=model.device)
        if past == 0:
            self.cache.prompt_length = rows
        line = None if model.is_draft else model.recomputed_at
        if line is not None and self.cache.prompt_length <= line < past + 1 + max(depths) and past:
            raise ValueError(f"a text of more than {line} positions, begun with fewer, has other rotary frequencies throughout")
        # An empty cache with a causal chain needs no explicit mask: the model's own causal path is right and fastest.
        mask = None
        if (past > 0 or parents is not None or model.plan.window is not None) and model.plan.needs_mask(past, rows):
            mask = build(model.plan, past, depths, parents, model.dtype, model.device)
        self._last_start = past
        if isinstance(ids, Tensor) and self.layers and self.layers[0] != 0:
            # Granite multiplies whatever enters by a factor of its embedding; what a layer left behind has had it.
            inner = getattr(module, "model", module)
            if hasattr(inner, "embedding_multiplier"):  # of this view alone
                inner.embedding_multiplier = 1.0
                try:
                    return self._forward(module, mask, positions, **extra)
                finally:
                    inner.embedding_multiplier = inner.config.embedding_multiplier
        return self._forward(module, mask, positions, **extra)

    def _forward(self, module: Any, mask: Any, positions: Tensor, **inputs: Any) -> Any:
        """The module's forward behind what the cache holds."""
        return module(attention_mask=mask, position_ids=positions, past_key_values=self.cache, use_cache=True, **inputs)

    def rollback(self, length: int) -> None:
        """Forget every fed token from `length` on (O(1))."""
        assert 0 <= length <= self.length, f"rollback to {length} of {self.length}"
        self.cache.cut(length, self.layers)

    def mark(self) -> Mark:
        """Where it stands now, for `restore`."""
        return self.pending, tuple(self.cache.lengths)

    def restore(self, mark: Mark) -> None:
        """Forget what was fed since the mark, layer by layer (O(1)); nothing older may have been forgotten in between."""
        self.pending, lengths = mark
        for number, (held, length) in enumerate(zip(self.cache.lengths, lengths, strict=True)):
            assert length <= held, f"a layer holds {held} of the {length} rows of the mark"
            self.cache.cut(length, (number,))

    # The canonical round of a target.

    def prefill(self, prompt_ids: Sequence[int]) -> Evidence:
        """Feed the whole prompt; logits [1, vocab] after its last token. The caller's choice becomes `pending`."""
        logits = self.feed(prompt_ids, last_only=True)
        return Evidence(logits, self._tapped)

    def forward(self, tree: DraftTree) -> Evidence:
        """Feed pending, the tree's nodes and its riders; see `Evidence`."""
        assert self.pending is not None, "prefill first"
        ids, riders = [self.pending, *tree.tokens], tree.riders
        if tree.start_layer or (riders is not None and riders.start_layer):
            return self._forward_by_layers(ids, tree)
        rows = len(ids)
        parents = None if tree.parents is None else [-1, *(parent + 1 for parent in tree.parents)]
        if riders is None:
            return Evidence(self.feed(ids, parents=parents), self._tapped)
        parents, depths = _with_riders(tree)
        if riders.tokens is not None:
            logits = self.feed([*ids, *riders.tokens], parents=parents, depths=depths)
        else:
            assert riders.embeddings is not None
            embedded = self.model.module.get_input_embeddings()(torch.tensor(ids, device=self.model.device))
            logits = self.feed(torch.cat([embedded, riders.embeddings]), parents=parents, depths=depths)
        return Evidence(logits[:rows], {layer: hidden[:rows] for layer, hidden in self._tapped.items()}, logits[rows:])

    def _forward_by_layers(self, ids: list[int], tree: DraftTree) -> Evidence:
        """The same where rows enter at a later layer: a draft went so far itself, or riders begin there."""
        assert not self.tap_layers, "taps are numbered by a whole forward"
        first, total, riders = tree.start_layer, self.model.num_cache_layers, tree.riders
        if riders is not None and riders.start_layer:
            assert first in (0, riders.start_layer), "riders enter where the draft's own rows do"
        start = first or (riders.start_layer if riders is not None else 0)
        past = self.cache.lengths[start]
        parents = None if tree.parents is None else [-1, *(parent + 1 for parent in tree.parents)]
        if first:
            assert tree.hidden is not None and len(tree.hidden) == len(ids), "one hidden state for pending and every node"
            hidden = tree.hidden
        else:
            hidden = self.run_layers(ids, 0, start, parents)
        depths = None
        if riders is not None:
            parents, depths = _with_riders(tree)
            given = riders.embeddings if riders.tokens is None else None
            assert given is not None, "riders that enter at a later layer bring what enters it"
            hidden = torch.cat([hidden, given])
        logits = self.part(range(start, total)).feed(hidden, parents=parents, depths=depths)
        self._last_start = past
        rows, share = len(ids), (total - first) / total
        return Evidence(logits[:rows], {}, logits[rows:] if riders is not None else None, share)

    def commit(self, verdict: Verdict) -> None:
        """Keep pending and the accepted path in the cache; the verdict's last token is pending next."""
        self.cache.keep_rows(self._last_start, verdict.rows)
        self.pending = verdict.extra

    # Parts of the model.

    def part(self, layers: Sequence[int], final_norm: bool = True) -> Session:
        """A session on these layers alone, on this one's cache. Raises ValueError for a model without such layers."""
        key = (*layers, int(final_norm))
        if key not in self._parts:
            self._parts[key] = Session(view(self.model, layers, final_norm), cache=self.cache, layers=list(layers))
        return self._parts[key]

    @torch.inference_mode()
    def run_layers(self, rows: Sequence[int] | Tensor, first: int, last: int, parents: Sequence[int] | None = None) -> Tensor:
        """Feed rows (ids, or hidden states [n, width]) through the layers `first` to `last` - 1; hidden states [n, width].

        They stand behind what layer `first` has seen; each layer's length is its own until all hold the same rows again.
        """
        part = self.part(range(first, last), final_norm=False)
        hidden: Tensor = part._call(part.model.module.model, rows, parents, None).last_hidden_state[0]
        return hidden

    @torch.inference_mode()
    def exit_logits(self, hidden: Tensor) -> Tensor:
        """What the LM head says of hidden states [n, width] of `run_layers`, [n, vocab]."""
        return exit_logits(self.model, hidden)

    def fork(self, skip_layers: Sequence[int] = ()) -> Session:
        """A draft on the same weights and cache, without some layers. Mark before it is fed and restore before verifying."""
        return self.part([n for n in range(self.model.num_cache_layers) if n not in skip_layers])


def _with_riders(tree: DraftTree) -> tuple[list[int], list[int]]:
    """Parents and depths of all rows, pending first: the tree's nodes, then its riders."""
    riders = tree.riders
    assert riders is not None
    parents = [-1, *(tree.parent(node) + 1 for node in range(len(tree.tokens))), *(parent + 1 for parent in riders.parents)]
    depths = _depths(parents)
    if riders.positions is not None:
        depths[-len(riders) :] = riders.positions
    return parents, depths


def _depths(parents: Sequence[int]) -> list[int]:
    depths: list[int] = []
    for parent in parents:
        depths.append(0 if parent < 0 else depths[parent] + 1)
    return depths
