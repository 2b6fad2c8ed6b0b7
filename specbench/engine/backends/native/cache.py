"""Keys and values as forward.cpp reads them."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from specbench.engine.backends.native.packing import LANES
from specbench.engine.backends.native.pages import HUGE, Pages
from specbench.engine.backends.native.weights import NativeWeights


class NativeCache:
    """Keys [kv head, capacity / 16, head_dim, 16] and values [kv head, capacity, head_dim in sixteens] of each layer.

    unmoved: where rows begin and which of them were kept, if they still stand where they were fed. Keys lie dimension by
    dimension, so that to move one is to read a line of memory for each: a whole forward reads them anyway, layer by layer, and
    moves them then. `settle` does it now.
    """

    def __init__(self, weights: NativeWeights):
        self.weights, shape = weights, weights.shape
        self.capacity = 0
        self.lengths = [0] * shape.layers
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.unmoved: tuple[int, array[int]] | None = None
        self.reserve(LANES)

    @property
    def length(self) -> int:
        return self.lengths[0]

    @property
    def nbytes(self) -> int:
        """Bytes allocated for keys and values."""
        return sum(part.nbytes for part in (*self.keys, *self.values))

    @property
    def layers(self) -> list[Any]:
        """Copies in the common layout, [1, kv heads, length, head_dim], for those who compare caches."""
        dim = self.weights.shape.head_dim
        self.settle()
        return [
            SimpleNamespace(
                length=length,
                keys=keys.transpose(2, 3).flatten(1, 2)[None, :, :length],
                values=values[None, :, :length, :dim],
            )
            for length, keys, values in zip(self.lengths, self.keys, self.values, strict=True)
        ]

    def reserve(self, capacity: int) -> None:
        """Make room for `capacity` positions, keeping what is there."""
        if capacity <= self.capacity:
            return
        self.settle()
        shape, blocks = self.weights.shape, -(-capacity // LANES)
        self.capacity = blocks * LANES
        ld = -(-shape.head_dim // LANES) * LANES
        nbytes = 4 * len(self.lengths) * shape.kv_heads * self.capacity * (shape.head_dim + ld)
        zeros = Pages().zeros if nbytes >= HUGE else torch.zeros
        keys = [zeros((shape.kv_heads, blocks, shape.head_dim, LANES)) for _ in self.lengths]
        values = [zeros((shape.kv_heads, self.capacity, ld)) for _ in self.lengths]
        for new, old in zip((*keys, *values), (*self.keys, *self.values), strict=False):
            new[:, : old.shape[1]] = old
        self.keys, self.values = keys, values
        pointers = ctypes.c_void_p * len(keys)
        self.key_pointers = pointers(*(part.data_ptr() for part in keys))
        self.value_pointers = pointers(*(part.data_ptr() for part in values))

    def cut(self, length: int, layers: Sequence[int]) -> None:
        """Forget every position of these layers from `length` on."""
        for number in layers:
            self.lengths[number] = length

    def keep_rows(self, start: int, rows: Sequence[int]) -> None:
        """Of the positions from `start` on keep `rows` (relative, ascending)."""
        self.settle()
        count = len(rows)
        if count and rows[-1] != count - 1:
            self.unmoved = start, array("q", rows)
        self.lengths = [start + count] * len(self.lengths)

    def settle(self) -> None:
        """Move what was kept to where it is counted."""
        if self.unmoved is None:
            return
        (start, kept), weights, self.unmoved = self.unmoved, self.weights, None
        pointers = (ctypes.addressof(self.key_pointers), ctypes.addressof(self.value_pointers))
        weights.library.sb_keep(weights.reference, *pointers, self.capacity, start, kept.buffer_info()[0], len(kept))

    def reset(self) -> None:
        self.unmoved = None
        self.lengths = [0] * len(self.lengths)
