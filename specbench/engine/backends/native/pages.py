"""Memory in pages of 2 MiB: what is read from end to end misses no page table there, and is fetched ahead without a stop."""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

HUGE = 1 << 21
_LINE = 64  # bytes of a line of the cache
_PIECE = 16 * HUGE  # of addresses: memory is taken where something is written


class Pages:
    """Tensors side by side, from a line of the cache on each; a piece of memory lives as long as any tensor in it."""

    def __init__(self) -> None:
        self._room = torch.empty(0, dtype=torch.uint8)

    def zeros(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        if not hasattr(mmap, "MADV_HUGEPAGE"):
            return torch.zeros(*shape, dtype=dtype)
        nbytes = math.prod(shape) * dtype.itemsize
        wanted = -(-nbytes // _LINE) * _LINE
        if len(self._room) < wanted:
            # Private: of memory that may be shared Linux makes small pages only, and does not say so.
            room = mmap.mmap(-1, max(wanted, _PIECE) + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with contextlib.suppress(OSError):  # a system may know the word and have no such pages: small ones serve
                room.madvise(mmap.MADV_HUGEPAGE)
            raw = torch.frombuffer(room, dtype=torch.uint8)
            self._room = raw[-raw.data_ptr() % HUGE :]
        mine, self._room = self._room[:nbytes], self._room[wanted:]
        return mine.view(dtype).view(*shape)

    def copy(self, values: Tensor) -> Tensor:
        return self.zeros(values.shape, values.dtype).copy_(values)
