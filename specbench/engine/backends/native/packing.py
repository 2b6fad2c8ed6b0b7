"""A matrix as forward.cpp reads it, in the smallest of four forms that gives every float32 number back exactly.

Four and eight bits are those of GGUF's Q4_1 and Q8_0: blocks of 32 inputs with a scale (and an offset) of half precision.
Whether a matrix was made so is found from its numbers (`engine.blocks`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from specbench.engine import blocks
from specbench.engine.blocks import BLOCK

LANES, UNIT = 16, 64
FLOATS, HALVES, FOUR_BITS, EIGHT_BITS = range(4)
BYTES = {FLOATS: 4.0, HALVES: 2.0, FOUR_BITS: 24 / BLOCK, EIGHT_BITS: 36 / BLOCK}  # a weight
_LOOK = 64  # outputs that are tried before the whole matrix is


def pack(weight: Tensor, smaller: bool = True) -> tuple[int, Tensor]:
    """The form of float32 weights [outputs, inputs], outputs in sixteens, and their numbers, flat, unit by unit."""
    if smaller and weight.shape[1] % BLOCK == 0:
        for kind, find in ((FOUR_BITS, _four_bits), (EIGHT_BITS, _eight_bits)):
            if find(weight[:_LOOK]) is not None and (found := find(weight)) is not None:
                return kind, _in_units(found)
    half = weight.to(torch.bfloat16)
    if smaller and torch.equal(half.float(), weight):
        return HALVES, _in_units([half])
    return FLOATS, _in_units([weight])


def _four_bits(weight: Tensor) -> list[Tensor] | None:
    """Scale [outputs, blocks], offset, words of eight q [outputs, blocks, 4], four of them low; None: not of the kind."""
    found = blocks.found(weight)
    if found is None:
        return None
    eights = found.q.unflatten(-1, (-1, 2, 4))
    return [found.scale, found.offset, (eights[..., 0, :] | eights[..., 1, :] << 4).flatten(-2).view(torch.int32)]


def _eight_bits(weight: Tensor) -> list[Tensor] | None:
    """Scale [outputs, blocks] and words of four q + 128 [outputs, blocks, 8]; None: it is not of the kind."""
    found = blocks.found_in_eight(weight)
    return None if found is None else [found.scale, (found.q.view(torch.uint8) ^ 128).view(torch.int32)]


def _in_units(parts: list[Tensor]) -> Tensor:
    """Parts [outputs, places, ...] as [unit][place][part][...][64], the last unit narrower, flat; of several parts bytes."""
    outputs = len(parts[0])
    whole = outputs // UNIT * UNIT
    made = []
    for first, last, width in ((0, whole, UNIT), (whole, outputs, outputs - whole)):
        if first < last:
            rows = [_by_place(part[first:last].unflatten(0, (-1, width))) for part in parts]
            made.append(
                rows[0].flatten() if len(rows) == 1 else torch.cat([row.view(torch.uint8) for row in rows], 2).flatten()
            )
    return torch.cat(made)


def _by_place(part: Tensor) -> Tensor:
    """[units, width, places, ...] to [units, places, ... * width]."""
    return part.movedim(1, -1).flatten(2).contiguous()
