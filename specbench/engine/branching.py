"""A draft model's session that grows a tree behind its sequence and keeps the branches' rows in the cache.

Everything fed when `branch` is called is the trunk. `grow` appends rows that see the trunk, their ancestors among the rows
grown before, and themselves; `keep` makes a path of them part of the sequence, `rollback` forgets them. Nothing is copied
between the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from specbench.engine.masks import FULL, SLIDING
from specbench.engine.model import Model
from specbench.engine.session import Session


class Branching(Session):
    """The same on every backend. Rows below the trunk are numbered in the order in which they are grown, -1 is the trunk."""

    def branch(self, trunk: int | None = None) -> None:
        """What is fed now is the trunk of the next tree; or the first `trunk` of it, and the rest is a chain of its rows."""
        self.trunk = self.length if trunk is None else trunk
        assert 0 <= self.trunk <= self.length, f"a trunk of {self.trunk}, {self.length} are fed"
        self.row_parents: list[int] = list(range(-1, self.length - self.trunk - 1))

    def _append(self, parents: Sequence[int]) -> int:
        """Take in the parents of rows that are about to be grown; where the first of them goes."""
        old = len(self.row_parents)
        assert self.length == self.trunk + old, "branch first"
        assert all(parent < old for parent in parents), "a row's parent was grown by an earlier call"
        self.row_parents += parents
        return self.trunk + old

    def grow(self, ids: Sequence[int], parents: Sequence[int]) -> Tensor:
        """Append rows below the trunk; logits [n, vocab] after them."""
        raise NotImplementedError

    def keep(self, rows: Sequence[int]) -> None:
        """Make a path of the grown rows, ascending, part of the sequence and forget the others."""
        self.cache.keep_rows(self.trunk, list(rows))
        self.branch()

    def rollback(self, length: int) -> None:
        super().rollback(length)
        self.branch()


class BranchingSession(Branching):
    """On transformers' own forward. Raises ValueError for a model that takes chains only."""

    def __init__(self, model: Model, taps: Sequence[int] = (), cache: Any = None, layers: Sequence[int] | None = None):
        if model.tree_refusal is not None:
            raise ValueError(f"this model takes draft chains only: {model.tree_refusal}")
        super().__init__(model, taps, cache, layers)
        self.branch()

    def branch(self, trunk: int | None = None) -> None:
        super().branch(trunk)
        rows, low = len(self.row_parents), torch.finfo(self.model.dtype).min
        self._row_depths: list[int] = list(range(rows))
        among = torch.full((rows, rows), low, dtype=self.model.dtype, device=self.model.device)
        self._visible = among.triu_(1)  # among the grown rows, additive

    @torch.inference_mode()
    def grow(self, ids: Sequence[int], parents: Sequence[int]) -> Tensor:
        model, rows, past = self.model, len(ids), self._append(parents)
        old = past - self.trunk
        own = torch.full((rows, old + rows), torch.finfo(model.dtype).min, dtype=model.dtype, device=model.device)
        for row, parent in enumerate(parents):
            if parent >= 0:
                own[row, :old] = self._visible[parent, :old]
        own[:, old:].fill_diagonal_(0.0)
        grown = own.new_full((old + rows, old + rows), torch.finfo(model.dtype).min)
        grown[:old, :old], grown[old:] = self._visible, own
        self._visible = grown
        self._row_depths += [0 if parent < 0 else self._row_depths[parent] + 1 for parent in parents]
        depths = self._row_depths[old:]
        positions = torch.tensor([[self.trunk + depth for depth in depths]], device=model.device)
        fed = torch.tensor([[i if i < model.num_rows else 0 for i in ids]], device=model.device)
        output = self._forward(model.module, self._mask(own, positions[0]), positions, input_ids=fed)
        self._last_start = past
        return model.answer(output.logits[0], past, rows)

    def _mask(self, own: Tensor, positions: Tensor) -> Tensor | dict[str, Tensor]:
        """[1, 1, n, trunk + grown]: everything of the trunk, and what `own` says of the grown rows; windows cut by depth."""
        plan = self.model.plan
        full = torch.cat([own.new_zeros((len(own), self.trunk)), own], dim=1)[None, None]
        if plan.window is None:
            return full
        trunk = torch.arange(self.trunk, device=own.device)
        keys = torch.cat([trunk, self.trunk + torch.tensor(self._row_depths, device=own.device)])
        far = positions[:, None] - keys[None] >= plan.window
        sliding = full.masked_fill(far[None, None], torch.finfo(own.dtype).min)
        return sliding if plan.layer_types == (SLIDING,) else {FULL: full, SLIDING: sliding}
