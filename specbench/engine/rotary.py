"""Rotary embeddings whose frequencies depend on how long the text is: dynamic NTK scaling, and LongRoPE (2402.13753).

transformers takes the length from the furthest position of a forward, and keeps what a longer one left behind. Autoregressive
decoding feeds the prompt at once and then a row a time, so each later row has the frequencies of its own position. A forward
over several drafted rows would give all of them those of the last one, and a shorter text after a longer one the longer one's:
here each row gets its own, whatever was fed before.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

# Their `generate` computes the whole text anew when it outgrows the original context, with the frequencies of long texts.
RECOMPUTED = ("phi3", "phi4_multimodal", "phimoe")


class ByRow(nn.Module):
    """A rotary embedding that answers as if every row behind the prompt were fed alone.

    line: positions from here on have frequencies of their own.
    """

    def __init__(self, rotary: Any, line: int):
        super().__init__()
        self.rotary, self.line = rotary, line

    def __getattr__(self, name: str) -> Any:  # some models ask it for its configuration
        return getattr(self._modules["rotary"], name) if name not in self._modules else self._modules[name]

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor, *more: Any, **named: Any) -> Any:
        """Cosines and sines [1, n, width] of position_ids [1, n]. Rows from position 0 on are a prompt, fed at once."""
        places = position_ids.reshape(-1, position_ids.shape[-1])[0].tolist()
        if places[0] == 0 or max(places) < self.line:
            return self._forgetful(x, position_ids, *more, **named)
        distinct = sorted(set(places))
        alone = [self._forgetful(x, position_ids[..., [places.index(place)]], *more, **named) for place in distinct]
        rows = torch.tensor([distinct.index(place) for place in places], device=position_ids.device)
        if isinstance(alone[0], torch.Tensor):  # cosines and sines as one complex number
            return torch.cat(alone, dim=-2).index_select(-2, rows)
        return tuple(torch.cat(kind, dim=-2).index_select(-2, rows) for kind in zip(*alone, strict=True))

    def _forgetful(self, *inputs: Any, **named: Any) -> Any:
        """What an embedding says that has seen no other text: a copy, since it keeps the frequencies in its buffers."""
        one = copy.copy(self.rotary)
        one._buffers = dict(self.rotary._buffers)
        return one(*inputs, **named)


def by_row(module: Any) -> None:
    """Put every such embedding of a model behind `ByRow`, once."""
    for parent in list(module.modules()):
        for name, child in [] if isinstance(parent, ByRow) else list(parent.named_children()):
            if (line := _line(child)) is not None:
                setattr(parent, name, ByRow(child, line))


def _line(rotary: Any) -> int | None:
    """The first position whose frequencies depend on the length of the text; None for embeddings without one."""
    kinds = getattr(rotary, "rope_type", None)
    if isinstance(rotary, ByRow) or kinds is None:
        return None
    kinds = kinds if isinstance(kinds, dict) else {None: kinds}
    lines = [line_of(rotary.config, kind, layer_type) for layer_type, kind in kinds.items()]
    return min((line for line in lines if line is not None), default=None)


def line_of(config: Any, kind: str, layer_type: str | None = None) -> int | None:
    """The same of a configuration, for one kind of rotary embedding."""
    if "dynamic" in kind:
        return config.max_position_embeddings
    if kind != "longrope":
        return None
    given = config.rope_parameters if layer_type is None else config.rope_parameters[layer_type]
    return given["original_max_position_embeddings"]


def recomputed_at(config: Any) -> int | None:
    """The length beyond which `generate` computes a text anew that began shorter; None for a text model without one."""
    if getattr(config, "model_type", None) not in RECOMPUTED:
        return None
    return line_of(config, (config.rope_parameters or {}).get("rope_type", "default"))


def context_length(config: Any) -> int | None:
    """Positions that a text model was made for, None if it does not say; dynamic NTK scaling multiplies them by its factor."""
    length = getattr(config, "max_position_embeddings", None)
    given = getattr(config, "rope_parameters", None) or {}
    if length is not None and "dynamic" in str(given.get("rope_type")):
        return int(length * given["factor"])
    return length
