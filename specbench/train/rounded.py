"""Training weights that will be kept in four bits: every forward sees them rounded, every gradient passes through.

The straight-through estimator (Bengio et al. 1308.3432) under weights, as quantisation-aware training has it (1712.05877).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.utils import parametrize

from specbench.engine import blocks


class Rounded(nn.Module):
    """A matrix, rounded to blocks of four bits; its gradient is the rounded one's."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (blocks.nearest(weight.detach()).weight - weight.detach())


@contextlib.contextmanager
def rounded(model: nn.Module) -> Iterator[None]:
    """Inside, the trained linear layers of a model compute with rounded weights; behind it they have them."""
    layers = [m for m in model.modules() if type(m) is nn.Linear and m.weight.requires_grad and blocks.fits(m.weight)]
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", Rounded())
    try:
        yield
    finally:
        for layer in layers:
            plain = blocks.nearest(layer.parametrizations["weight"].original.detach()).weight  # type: ignore[index,union-attr]
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
            layer.weight.data.copy_(plain)
            assert blocks.found(layer.weight.detach()) is not None
