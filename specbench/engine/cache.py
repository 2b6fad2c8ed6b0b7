"""A preallocated key-value cache with O(1) rollback and path gather, for any attention model of transformers.

transformers' own caches either concatenate a whole layer per token (`DynamicCache`) or cannot be cut back (`StaticCache`).
Here each layer owns one buffer; appending writes a slice, rollback moves an integer. Nothing is ever evicted, also not in
sliding-window layers: their window lives in the mask (`specbench.engine.masks`), so that a rollback past it stays exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


class PreallocatedLayer(CacheLayerMixin):
    """One layer's keys and values, [1, heads, capacity, head_dim]; `length` positions are in use."""

    is_sliding = False
    is_croppable = True

    def __init__(self) -> None:
        super().__init__()
        self.length = 0
        self.capacity = 0

    def reserve(self, capacity: int) -> None:
        """Make room for `capacity` positions, keeping what is there (called between samples, never per token)."""
        if capacity <= self.capacity:
            return
        self.capacity = capacity
        if self.is_initialized:
            assert self.keys is not None and self.values is not None
            old_keys, old_values = self.keys, self.values
            self.lazy_initialization(old_keys, old_values)
            self.keys[:, :, : self.length] = old_keys[:, :, : self.length]
            self.values[:, :, : self.length] = old_values[:, :, : self.length]

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        assert key_states.shape[0] == 1, "one sequence per session"
        self.keys = key_states.new_empty((1, key_states.shape[1], self.capacity, key_states.shape[3]))
        self.values = value_states.new_empty((1, value_states.shape[1], self.capacity, value_states.shape[3]))
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append [1, heads, n, head_dim] and return views over everything in use."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        start, end = self.length, self.length + key_states.shape[2]
        assert end <= self.capacity, f"cache of {self.capacity} positions asked for {end}"
        self.keys[:, :, start:end] = key_states
        self.values[:, :, start:end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def gather(self, start: int, rows: torch.Tensor) -> None:
        """Keep only `rows` (indices relative to `start`, ascending) of the positions from `start` on, packed together."""
        if self.is_initialized:
            assert self.keys is not None and self.values is not None
            end = start + len(rows)
            self.keys[:, :, start:end] = self.keys[:, :, start + rows]
            self.values[:, :, start:end] = self.values[:, :, start + rows]
            self.length = end

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return self.capacity

    # Some versions of transformers ask by this name.
    get_max_cache_shape = get_max_length

    def reset(self) -> None:
        self.length = 0


class KVCache(Cache):
    """All layers of one sequence. `length` is the number of positions that the model has seen and still counts.

    prompt_length: rows of the forward that began the text.
    """

    layers: list[PreallocatedLayer]  # type: ignore[assignment]  # transformers allows other kinds; here there is one

    def __init__(self, num_layers: int):
        super().__init__(layers=[PreallocatedLayer() for _ in range(num_layers)])
        self.prompt_length = 0

    @property
    def length(self) -> int:
        return self.layers[0].length

    @property
    def lengths(self) -> list[int]:
        """The same of each layer: sessions on a part of the model feed their own layers alone."""
        return [layer.length for layer in self.layers]

    @property
    def nbytes(self) -> int:
        """Bytes allocated for keys and values."""
        return sum(t.nbytes for layer in self.layers for t in (layer.keys, layer.values) if t is not None)

    def reserve(self, capacity: int) -> None:
        for layer in self.layers:
            layer.reserve(capacity)

    def rollback(self, length: int) -> None:
        """Forget every position from `length` on: O(1) per layer, no copy."""
        assert 0 <= length <= self.length, f"rollback to {length} of {self.length}"
        self.cut(length, range(len(self.layers)))

    def cut(self, length: int, layers: Sequence[int]) -> None:
        """The same for some of the layers."""
        for number in layers:
            self.layers[number].length = length

    def keep_rows(self, start: int, rows: Sequence[int]) -> None:
        """Of the positions from `start` on keep `rows` (relative, ascending); a leading run needs no copy."""
        if all(row == i for i, row in enumerate(rows)):
            self.rollback(start + len(rows))
            return
        first = self.layers[0].keys
        assert first is not None
        index = torch.tensor(rows, device=first.device)
        with torch.inference_mode():  # the buffers are inference tensors: nowhere else may they be written to
            for layer in self.layers:
                keys = layer.keys
                layer.gather(start, index if keys is None or keys.device == index.device else index.to(keys.device))

    def reset(self) -> None:
        for layer in self.layers:
            layer.length = 0
