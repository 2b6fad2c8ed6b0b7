"""Matrices in blocks: 32 inputs of an output share a scale, and in four bits (GGUF's Q4_1) an offset, of half precision.

A number is q * scale + offset with q from 0 to 15; in eight bits (Q8_0) q * scale with q from -127 to 127; in float32. Whether
a matrix was made so is found from its numbers alone: offset and scale follow from a block's extremes, and all is compared.
An output's blocks are its own, so what is picked or put together by outputs keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK, LEVELS, GREATEST = 32, 15, 127
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


class EightBits(NamedTuple):
    """scale: float32 [outputs, blocks]. q: int8 [outputs, blocks, 32]."""

    scale: Tensor
    q: Tensor


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


def found_in_eight(weight: Tensor) -> EightBits | None:
    """The same of eight bits."""
    inputs = weight.unflatten(1, (-1, BLOCK))
    scale = (inputs.abs().amax(-1) / GREATEST).half().float()
    q = (inputs / scale.clamp(min=1e-30)[..., None]).round_().clamp_(-GREATEST, GREATEST)
    return EightBits(scale, q.to(torch.int8)) if torch.equal(q * scale[..., None], inputs) else None


def is_made_of_them(weight: Tensor) -> bool:
    """Whether a matrix is, to the bit, one of blocks of four or eight bits."""
    whole = weight.float()
    return fits(weight) and (found(whole) is not None or found_in_eight(whole) is not None)


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
