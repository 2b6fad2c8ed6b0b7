"""Additive attention masks for rows appended to a cache: chains, trees, and sliding windows.

Additive floats and never booleans: a boolean 4-D mask is silently wrong under eager attention (logits off by 0.05 in a toy
model), a float one is right under both eager and sdpa. Positions follow depth, so a sliding window is cut by depth too.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch

FULL, SLIDING = "full_attention", "sliding_attention"
WITHOUT_WINDOW = ("moshi",)  # their configurations declare one that transformers' forward does not read


@dataclass(frozen=True)
class MaskPlan:
    """Which masks a model wants: the layer types it has, and the window of the sliding ones.

    makes_own: it takes no mask of ours, and makes that of a chain from what the cache holds.
    """

    layer_types: tuple[str, ...]
    window: int | None
    makes_own: bool = False

    @classmethod
    def of(cls, config: object) -> MaskPlan:
        """Read a transformers text config. Raises ValueError for layer types that cannot be rolled back exactly."""
        types = getattr(config, "layer_types", None)
        window = getattr(config, "sliding_window", None)
        without = getattr(config, "model_type", None) in WITHOUT_WINDOW or not _declares(config, "sliding_window")
        if getattr(config, "use_sliding_window", True) is False or without:
            window = None
        if types is None:
            types = [SLIDING if window else FULL]
        kinds = tuple(sorted(set(types)))
        odd = [kind for kind in kinds if kind not in (FULL, SLIDING)]
        if odd:
            raise ValueError(f"layers of type {', '.join(odd)} keep state that cannot be rolled back exactly")
        if SLIDING in kinds and not window:
            kinds = (FULL,)
        return cls(kinds, window if SLIDING in kinds else None, has_alibi(config))

    def needs_mask(self, past: int, rows: int) -> bool:
        """False where 'attend to everything' is right for one row (the fast path of plain decoding)."""
        return not self.makes_own and (rows > 1 or (self.window is not None and past + rows > self.window))


def _declares(config: object, name: str) -> bool:
    """Whether its class has such an option: others that a file holds are kept too, and nobody reads them."""
    if not hasattr(type(config), "model_type"):  # none of transformers': what it holds was put there for its forward
        return hasattr(config, name)
    return any(name in inspect.signature(kind).parameters for kind in type(config).__mro__[:-1])


def has_alibi(config: object) -> bool:
    """BLOOM, and Falcon where it says so: they take masks of one row alone, since they make the bias of distances from it."""
    return getattr(config, "model_type", None) == "bloom" or bool(getattr(config, "alibi", False))


def ancestor_mask(parents: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """[n, n] additive mask of rows that see themselves and their ancestors; parents[i] < i, -1 for none. On the CPU."""
    rows = len(parents)
    mask = torch.full((rows, rows), torch.finfo(dtype).min, dtype=dtype)
    for row, parent in enumerate(parents):
        if parent >= 0:
            mask[row] = mask[parent]
        mask[row, row] = 0.0
    return mask


def build(
    plan: MaskPlan, past: int, depths: Sequence[int], parents: Sequence[int] | None, dtype: torch.dtype, device: torch.device
) -> torch.Tensor | dict[str, torch.Tensor]:
    """The mask for rows appended after `past` positions.

    depths: position of each row relative to `past` (a chain: 0, 1, 2, ...). parents: row index of each row's parent within the
    new rows (-1: hangs on the last cached position), None for a chain.
    Returns [1, 1, n, past + n] or, for models that mix layer types, one such tensor per type.
    """
    rows = len(depths)
    lowest = torch.finfo(dtype).min
    full = torch.zeros((1, 1, rows, past + rows), dtype=dtype, device=device)
    if rows > 1:
        if parents is None:
            full[0, 0, :, past:] = torch.full((rows, rows), lowest, dtype=dtype, device=device).triu_(1)
        else:
            full[0, 0, :, past:] = ancestor_mask(parents, dtype).to(device)
    if plan.window is None:
        return full
    query = torch.tensor(depths, device=device).unsqueeze(1) + past
    key = torch.cat([torch.arange(past, device=device), query.squeeze(1)]).unsqueeze(0)
    sliding = full.masked_fill((query - key >= plan.window)[None, None], lowest)
    return sliding if plan.layer_types == (SLIDING,) else {FULL: full, SLIDING: sliding}
