"""Targets that keep a recurrent state instead of a cache (Mamba): fed token by token, committed by going back to a kept state.

A state cannot be cut back: every row of a forward leaves the state behind it, and `commit` takes up the one behind the last row
that stands. That is exact and costs a step a row, so drafting pays nothing here yet; it is what trees on such models (STree,
2505.14969) must be compared with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from specbench.engine.model import Model
from specbench.engine.tree import DraftTree, Evidence, Verdict

State = list[tuple[list[Tensor], list[Tensor]]]
"""By layer: the convolution's last inputs and the recurrent state."""


class RecurrentSession:
    """One sequence. Chains only, no taps: `can` says so."""

    can = frozenset({"logits"})

    def __init__(self, model: Model, taps: Sequence[int] = ()):
        self.model = model
        self.pending: int | None = None
        self.tap_layers = tuple(taps)
        self.start(0)

    @property
    def length(self) -> int:
        """Number of tokens fed."""
        return self._length

    @property
    def nbytes(self) -> int:
        """Bytes of the state, and of those kept behind the rows of the last forward."""
        states = [] if self._cache is None else [_state_of(self._cache), *self._behind]
        return sum(tensor.nbytes for state in states for kinds in state for tensors in kinds for tensor in tensors)

    def start(self, capacity: int) -> None:
        """A new sequence; a state takes no more room for a longer one."""
        self._cache: Any = None
        self._length = 0
        self._behind: list[State] = []
        self.pending = None

    @torch.inference_mode()
    def feed(self, ids: Sequence[int], *, last_only: bool = False) -> Tensor:
        """Append rows and return their logits [n, vocab] ([1, vocab] with last_only)."""
        assert len(ids) > 0, "nothing to feed"
        rows, ids = [], self.model.rows_of(ids)
        self._behind = []
        if self._cache is None:  # a text in one go
            output = self.model.module(input_ids=torch.tensor([list(ids)], device=self.model.device), use_cache=True)
            self._cache = output.cache_params
            rows.append(output.logits[0, -1:] if last_only else output.logits[0])
        else:
            for token in ids:
                fed = torch.tensor([[token]], device=self.model.device)
                output = self.model.module(input_ids=fed, cache_params=self._cache, use_cache=True)
                rows.append(output.logits[0])
                self._behind.append(_state_of(self._cache, copy=True))
        self._length += len(ids)
        logits = torch.cat(rows)[-1:] if last_only else torch.cat(rows)
        return logits[:, : self.model.vocab_size]

    def prefill(self, prompt_ids: Sequence[int]) -> Evidence:
        """Feed the whole prompt; logits [1, vocab] after its last token."""
        return Evidence(self.feed(prompt_ids, last_only=True), {})

    def forward(self, tree: DraftTree) -> Evidence:
        """Feed pending and the drafted chain. Raises ValueError for a tree."""
        assert self.pending is not None, "prefill first"
        assert tree.riders is None and not tree.start_layer, "declared in no `can`"
        if tree.parents is not None:
            raise ValueError(f"this model takes draft chains only: {self.model.tree_refusal}")
        return Evidence(self.feed([self.pending, *tree.tokens]), {})

    def commit(self, verdict: Verdict) -> None:
        """Go back to the state behind the last row that stands; the verdict's last token is pending next."""
        rows = len(verdict.rows)
        self._length -= len(self._behind) - rows
        _take_up(self._cache, self._behind[rows - 1])
        self._behind = []
        self.pending = verdict.extra

    def mark(self) -> tuple[int | None, int, State]:
        """Where it stands now, for `restore`."""
        assert self._cache is not None, "prefill first"
        return self.pending, self._length, _state_of(self._cache, copy=True)

    def restore(self, mark: tuple[int | None, int, State]) -> None:
        self.pending, self._length, state = mark
        self._behind = []
        _take_up(self._cache, state)


def _state_of(cache: Any, copy: bool = False) -> State:
    def kept(states: Any) -> list[Tensor]:
        values = list(states.values()) if isinstance(states, dict) else list(states)
        return [value.clone() if copy else value for value in values]

    return [(kept(layer.conv_states), kept(layer.recurrent_states)) for layer in cache.layers]


@torch.inference_mode()
def _take_up(cache: Any, state: State) -> None:
    for ours, (conv, recurrent) in zip(_state_of(cache), state, strict=True):
        for target, source in zip((*ours[0], *ours[1]), (*conv, *recurrent), strict=True):
            target.copy_(source)
