"""Matrices in blocks of four bits, GGUF's Q4_1: 32 inputs of an output share a scale and an offset of half precision.

A number is q * scale + offset with q from 0 to 15, in float32. Whether a matrix was made so is found from its numbers alone:
offset and scale follow from a block's extremes, and everything is compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK, LEVELS = 32, 15
_PARTS = (".q4", ".scale", ".offset")  # on disk, behind the matrix's name


class FourBits(NamedTuple):
    """scale, offset: float32 [outputs, blocks]. q: uint8 [outputs, blocks, 32]."""

    scale: Tensor
    offset: Tensor
    q: Tensor

    @property
    def nibbles(self) -> Tensor:
        """q two by two, the first in the low bits, uint8 [outputs, blocks, 16]."""
        return self.q[..., 0::2] | self.q[..., 1::2] << 4

    @property
    def weight(self) -> Tensor:
        """float32 [outputs, inputs]."""
        return (self.q * self.scale[..., None] + self.offset[..., None]).flatten(1)


def fits(weight: Tensor) -> bool:
    """Whether it is a matrix of whole blocks."""
    return weight.ndim == 2 and weight.shape[1] % BLOCK == 0


def nearest(weight: Tensor) -> FourBits:
    """A matrix between the extremes of each block, rounded; float32 [outputs, inputs], inputs in whole blocks."""
    blocks = weight.float().unflatten(1, (-1, BLOCK))
    offset, most = blocks.amin(-1).half().float(), blocks.amax(-1)
    return _between(blocks, offset, most)


def found(weight: Tensor) -> FourBits | None:
    """The blocks that a float32 matrix was made of, to the bit; None: it is not of the kind. offset: of float32's precision."""
    blocks = weight.unflatten(1, (-1, BLOCK))
    made = _between(blocks, blocks.amin(-1), blocks.amax(-1))
    return made if torch.equal(made.weight, weight) else None


def _between(blocks: Tensor, offset: Tensor, most: Tensor) -> FourBits:
    scale = ((most - offset) / LEVELS).half().float()
    q = ((blocks - offset[..., None]) / scale.clamp(min=1e-30)[..., None]).round_().clamp_(0, LEVELS)
    return FourBits(scale, offset, q.to(torch.uint8))


def packed(name: str, weight: Tensor) -> dict[str, Tensor]:
    """What is stored of a matrix that is made of blocks with offsets of half precision, five bits a number; else nothing."""
    made = found(weight) if fits(weight) and weight.dtype == torch.float32 else None
    if made is None or not torch.equal(made.offset.half().float(), made.offset):
        return {}
    return dict(zip((name + part for part in _PARTS), (made.nibbles, made.scale.half(), made.offset.half()), strict=True))


def unpacked(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A stored state with its matrices as float32; the rest as it is. Raises KeyError for a matrix without all of its parts."""
    plain = {name: value for name, value in state.items() if not name.endswith(_PARTS)}
    for name in (name.removesuffix(_PARTS[0]) for name in state if name.endswith(_PARTS[0])):
        words, scale, offset = (state[name + part] for part in _PARTS)
        q = torch.stack([words & 15, words >> 4], -1).flatten(-2)
        plain[name] = FourBits(scale.float(), offset.float(), q).weight
    return plain
