"""An LM head over some of the ids: drafting needs the frequent ones alone (FR-Spec, Zhao et al. 2025, arXiv 2502.14856).

For a small draft of a large vocabulary the LM head is most of a forward. This one computes the rows of `ids` and says -inf of
every other id, so that all that reads logits (choice, ratio rules: q = 0 there) is as exact as with a whole head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from specbench.engine import blocks


class ReducedHead(nn.Module):
    """weight [k, width]: the LM head's rows of `ids`, in their order. ids: ascending. vocab_size: of the whole head.

    `linear` gives the logits of `ids` alone, [..., k]. Raises ValueError for ids that are no such map.
    """

    ids: Tensor
    places: Tensor  # of every id in `ids`, -1 for those that are not there

    def __init__(self, weight: Tensor, ids: Sequence[int] | Tensor, vocab_size: int):
        super().__init__()
        ids = torch.as_tensor(ids).long()
        check_map(ids, vocab_size)
        assert weight.shape[0] == len(ids), "one row per id"
        self.linear = nn.Linear(weight.shape[1], len(ids), bias=False, device="meta")
        self.linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.vocab_size = vocab_size
        self.register_buffer("ids", ids.to(weight.device), persistent=False)
        places = torch.full((vocab_size,), -1)
        places[ids] = torch.arange(len(ids))
        self.register_buffer("places", places.to(weight.device), persistent=False)

    @classmethod
    def of(cls, head: Any, ids: Sequence[int] | Tensor) -> ReducedHead:
        """Rows of a whole LM head without a bias, as they are where they are made of blocks: eight bits read less than sixteen.

        Others are rounded to bfloat16: half the bytes of float32, and a draft's guess is a guess.
        """
        if getattr(head, "bias", None) is not None:
            raise ValueError("an LM head with a bias is not reduced")
        ids = torch.as_tensor(ids).long()
        check_map(ids, head.weight.shape[0])
        rows = head.weight.detach()[ids.to(head.weight.device)]
        kept = rows if blocks.is_made_of_them(rows) else rows.bfloat16().to(rows.dtype)
        return cls(kept, ids, head.weight.shape[0])

    def widen(self, logits: Tensor) -> Tensor:
        """[..., k] to [..., vocab_size], -inf for ids without a row."""
        whole = logits.new_full((*logits.shape[:-1], self.vocab_size), float("-inf"))
        whole[..., self.ids] = logits
        return whole

    def forward(self, hidden: Tensor) -> Tensor:
        return self.widen(self.linear(hidden))


def check_map(ids: Tensor, vocab_size: int) -> None:
    """Raise ValueError where `ids` cannot be the ids of a reduced head."""
    if ids.dim() != 1 or not len(ids):
        raise ValueError("a reduced head's map is a list of ids")
    for odd in (int(ids.min()), int(ids.max())):
        if not 0 <= odd < vocab_size:
            raise ValueError(f"its map holds id {odd}, and the target has {vocab_size}")
    if bool((ids[1:] <= ids[:-1]).any()):
        raise ValueError("its map is not ascending: an id twice, or in the wrong place")


def frequent_ids(counts: Tensor, size: int) -> Tensor:
    """The `size` most frequent ids, ascending, int64; counts [vocab]. Of equal ones the smaller id."""
    return counts.double().argsort(descending=True, stable=True)[:size].sort().values
