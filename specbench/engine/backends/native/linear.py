"""Linear layers and norms of heads in forward.cpp: the same calls as torch's, a fraction of their time on a few rows."""

from __future__ import annotations

import ctypes
from typing import Any, cast

import torch
from torch import Tensor, nn

from specbench.engine import threads
from specbench.engine.backends.native.packing import LANES
from specbench.engine.backends.native.weights import NativeWeights


class NativeLinear(nn.Linear):
    """A frozen linear layer on a CPU in float32; it keeps the layer's own parameters beside the packed ones."""

    def __init__(self, linear: nn.Linear, weights: NativeWeights, is_lm_head: bool = False):
        """is_lm_head: it is the model's own, which is packed already."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self._weights, self._kept = weights, None if is_lm_head else weights.packed(linear)
        self._padded = -(-self.out_features // LANES) * LANES

    def __call__(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        x = x.contiguous()
        y = torch.empty((*x.shape[:-1], self._padded))
        rows = x.numel() // self.in_features
        self._weights.library.sb_linear(self.matrix, x.data_ptr(), rows, y.data_ptr(), threads.count())
        return y if self._padded == self.out_features else y[..., : self.out_features]

    forward = cast(Any, __call__)

    @property
    def matrix(self) -> int:
        """Where it lies as forward.cpp reads it."""
        return ctypes.addressof(self._weights.shape.head if self._kept is None else self._kept[0])

    def residual(self, x: Tensor, skip: NativeLinear | None, beside: Tensor | None, scale: float) -> Tensor:
        """See `parts.heads.base.residual`."""
        x, width, given, others = x.contiguous(), x.shape[-1], x, None
        if beside is not None:
            beside = given = beside.contiguous()
            others = beside.data_ptr()
        y = torch.empty((*given.shape[:-1], self._padded))
        rows, next_row = y.numel() // self._padded, width if given is x or len(x) == len(given) else 0
        self._weights.library.sb_residual(
            self.matrix,
            None if skip is None else skip.matrix,
            x.data_ptr(),
            width,
            next_row,
            others,
            scale,
            rows,
            y.data_ptr(),
            threads.count(),
        )
        return y if self._padded == self.out_features else y[..., : self.out_features]


class RowOf:
    """One row [1, width] of several, copied to where it always lies: behind a forward a tenth of the time of torch's view."""

    def __init__(self, width: int):
        self._room = torch.empty(1, width)
        self._at, self._bytes = self._room.data_ptr(), self._room.nbytes

    def __call__(self, rows: Tensor, number: int) -> Tensor:
        """rows [n, width], contiguous. What it gave before is overwritten."""
        ctypes.memmove(self._at, rows.data_ptr() + number * self._bytes, self._bytes)
        return self._room


class NativeNorm(nn.RMSNorm):
    """A frozen RMS norm with a gain, over the last dimension, likewise."""

    def __init__(self, norm: nn.RMSNorm, weights: NativeWeights):
        nn.Module.__init__(self)
        assert norm.weight is not None and norm.eps is not None
        self.normalized_shape, self.eps, self.elementwise_affine = norm.normalized_shape, norm.eps, True
        self.weight, self._width, self._library = norm.weight, norm.normalized_shape[-1], weights.library
        self._gain = norm.weight.data_ptr()

    def __call__(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        y = torch.empty_like(x)
        self.at(x.data_ptr(), x.numel() // self._width, y.data_ptr())
        return y

    def at(self, x: int, rows: int, y: int) -> None:
        """Of rows that lie one behind the other from address `x` on, to `y` on."""
        self._library.sb_norm(x, self._gain, rows, self._width, self.eps, y)

    forward = cast(Any, __call__)


def run_natively(module: nn.Module, weights: NativeWeights) -> None:
    """From now on the linear layers and norms below a frozen module compute here."""
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, NativeLinear(child, weights))
        elif type(child) is nn.RMSNorm and len(child.normalized_shape) == 1:
            setattr(module, name, NativeNorm(child, weights))
        else:
            run_natively(child, weights)
