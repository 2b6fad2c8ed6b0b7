"""The draft's distributions in shared memory, for the paper's acceptance rule; with integer messages nobody needs them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from specbench.processes.shared import SharedArray


class RowBuffer:
    """`num_rows` rows of `width` floats, written by the draft's process and read by the target's.

    It has no lock, because lockstep orders the accesses: the draft writes before it publishes a block, the target copies before
    it publishes the verdict, and the draft drafts again after that. Pass it to a spawned process as an argument.
    """

    def __init__(self, num_rows: int, width: int):
        self.shape = (num_rows, width)
        self._array = SharedArray("f", num_rows * width)
        self._attach()

    def _attach(self) -> None:
        self._rows = np.frombuffer(self._array.cells, dtype=np.float32).reshape(self.shape)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_rows"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._attach()

    @property
    def nbytes(self) -> int:
        return self._rows.nbytes

    def write(self, rows: Sequence[torch.Tensor]) -> None:
        """Put rows [at most width] at the front of the buffer; ids that the draft has no row for have probability 0."""
        for index, row in enumerate(rows):
            self._rows[index, : len(row)] = row.numpy(force=True)
            self._rows[index, len(row) :] = 0.0

    def read(self, count: int, device: torch.device | str) -> list[torch.Tensor]:
        """A copy of the first `count` rows [width], on `device`."""
        return list(torch.from_numpy(self._rows[:count].copy()).to(device))
