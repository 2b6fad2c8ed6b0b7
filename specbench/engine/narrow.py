"""Logits of a reduced head that are widened only where somebody reads them as what they say they are.

A tree's levels ask a draft for its few best ids, and all of them have rows in its head: a vector of the whole vocabulary would
be written, and read back, to find what stands in an eighth of it. `ranks` and the greedy choice look at the narrow rows; every
operation of torch gets whole rows with -inf elsewhere, as `ReducedHead.widen` makes them.
"""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from specbench.engine.reduced import ReducedHead


class Narrow(Tensor):
    """[n, vocab] to all who compute with it. `rows` [n, k]: the logits of `ids` alone; None once it has been widened, for who
    has the whole rows may have written into them.
    """

    rows: Tensor | None
    ids: Tensor
    whole: Tensor | None
    head: ReducedHead
    memory: tuple[int, int, int, int] | None  # of rows in float32 on the CPU, from whoever knows it: see `ranks.memory_of`
    totals: array[float] | None  # by row, the logarithm of its sum of exponentials, if somebody has asked

    @staticmethod
    def __new__(cls, rows: Tensor, head: ReducedHead, ids: Tensor, memory: tuple[int, int, int, int] | None = None) -> Narrow:
        """ids: the head's; looked up by whoever makes many of these."""
        made: Narrow = Tensor._make_wrapper_subclass(cls, (len(rows), head.vocab_size), dtype=rows.dtype, device=rows.device)
        made.rows, made.ids, made.whole, made.head, made.memory, made.totals = rows, ids, None, head, memory, None
        return made

    def __init__(self, rows: Tensor, head: ReducedHead, ids: Tensor, memory: tuple[int, int, int, int] | None = None):
        """Nothing is left to do, and torch's own takes no such arguments."""

    def hold(self, rows: Tensor) -> None:
        """Other rows, as many, in their place."""
        self.rows, self.whole, self.memory, self.totals = rows, None, None, None

    def widened(self) -> Tensor:
        if self.whole is None:
            assert self.rows is not None
            self.whole, self.rows, self.memory, self.totals = self.head.widen(self.rows), None, None, None
        return self.whole

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        given, named = tree_map_only(Narrow, Narrow.widened, (args, kwargs or {}))
        return func(*given, **named)

    # What reads memory without an operation of torch.

    def numpy(self, *, force: bool = False) -> np.ndarray[Any, Any]:
        return self.widened().numpy(force=force)

    def tolist(self) -> Any:
        return self.widened().tolist()

    def data_ptr(self) -> int:
        return self.widened().data_ptr()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.widened().__reduce_ex__(protocol)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return repr(self.widened())


def narrow_rows(logits: Tensor) -> tuple[Tensor, Tensor | None]:
    """The logits of those ids that they say anything of, and these ids, ascending; as they are, and None, if that is all."""
    if type(logits) is Narrow and logits.rows is not None:
        return logits.rows, logits.ids
    return logits, None
