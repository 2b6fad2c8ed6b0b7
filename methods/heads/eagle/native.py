"""EAGLE's layer on the native engine: it is a Llama of one layer that is fed states instead of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import LlamaConfig

from specbench.engine.backends.native.linear import NativeNorm
from specbench.engine.backends.native.session import NativeBranching
from specbench.engine.layers import empty
from specbench.engine.model import Model
from specbench.engine.narrow import Narrow
from specbench.methods.heads.eagle.draft import FeatureDraft
from specbench.methods.heads.eagle.heads import EPSILON, EagleHeads

FEATURES = -1  # the tap behind the last norm
FEW = 32  # rows of a round; a prompt's are joined at once
_BYTES = 4  # of a number


class NativeFeatureDraft(FeatureDraft):
    """The same calls and, up to rounding, the same predictions as `FeatureDraft`, of frozen heads.

    A round asks torch for next to nothing: between two forwards of the target its code is cold, and an operation on one row
    costs twenty microseconds.
    """

    def __init__(self, heads: EagleHeads, vocab_size: int):
        super().__init__(heads, vocab_size)
        self._session = NativeBranching(Model.wrap(as_llama(heads)).run_natively(), taps=(FEATURES,))
        self._norms = cast("tuple[NativeNorm, NativeNorm]", (heads.token_norm, heads.feature_norm))
        self._join, embedding = heads.layers["join"], heads.target.embedding.weight
        self._is_plain = all(isinstance(norm, NativeNorm) for norm in self._norms) and embedding.is_contiguous()
        self._embedding, self._widths = embedding, (embedding.shape[1], heads.target.width)
        reduced = heads.target.reduced
        self._guessed = (0, 0) if reduced is None else (len(reduced.ids), reduced.ids.data_ptr())
        self._narrow: dict[int, Narrow] = {}  # by rows
        self._joins: dict[int, Tensor] = {}  # by rows, the room for what the layer reads

    @property
    def nbytes(self) -> int:
        return self._session.nbytes

    def start(self, capacity: int) -> None:
        self._session.start(capacity)
        self.length = self.num_forwards = 0

    def extend(self, features: Tensor, ids: Sequence[int]) -> Tensor:
        self._session.feed(self._joined(features, ids), last_only=True)
        self._session.branch()
        self._level = -1  # the number of the first row of the last level below the text
        predicted = self._predicted()
        return predicted if len(ids) == 1 else predicted[-1:]

    def descend(self, features: Tensor, ids: Sequence[int], parents: Sequence[int]) -> Tensor:
        session, level = self._session, len(self._session.row_parents)
        session.grow(self._joined(features, ids), [-1 if self._level < 0 else self._level + row for row in parents])
        self._level = level
        return self._predicted()

    def rollback(self, length: int) -> None:
        self._session.rollback(length)
        self.length = length

    def _joined(self, features: Tensor, ids: Sequence[int]) -> Tensor:
        self.num_forwards += 1
        self.length += len(ids)
        rows, (own, width) = len(ids), self._widths
        if rows > FEW or not self._is_plain:
            return self.heads.join(features[:rows], torch.tensor(ids))
        made = self._joins.get(rows)
        if made is None:
            made = self._joins[rows] = torch.empty(rows, own + width)
        features = features.contiguous()
        embeddings, state, to = self._embedding.data_ptr(), features.data_ptr(), made.data_ptr()
        for token in ids:
            self._norms[0].at(embeddings + _BYTES * own * token, 1, to)
            self._norms[1].at(state, 1, to + _BYTES * own)
            state, to = state + _BYTES * width, to + _BYTES * (own + width)
        return self._join(made)

    def _predicted(self) -> Tensor:
        predicted, bias = self._session.tapped[FEATURES], self.heads.out_bias
        self._session.weights.library.sb_add(predicted.data_ptr(), bias.data_ptr(), *predicted.shape)
        return predicted

    def logits(self, features: Tensor) -> Tensor:
        """Of a reduced head they stand until these are asked for again with as many rows."""
        target = self.heads.target
        if target.reduced is None or self.vocab_size != target.vocab_size:
            return super().logits(features)
        rows = target.guess(features)
        made = self._narrow.get(len(rows))
        if made is None:
            made = self._narrow[len(rows)] = Narrow(rows, target.reduced, target.reduced.ids)
        else:  # to make another costs five times as much
            made.hold(rows)
        made.memory = (rows.data_ptr(), rows.stride(0), *self._guessed)
        return made


def as_llama(heads: EagleHeads) -> Any:
    """The layer and the norm behind it; the embedding and the LM head are none of EAGLE's, and of one row."""
    layer, options = heads.layer, heads.options
    made = empty(
        LlamaConfig(
            vocab_size=1,
            bos_token_id=None,
            eos_token_id=None,
            hidden_size=heads.target.width,
            intermediate_size=options["feed_forward"],
            num_hidden_layers=1,
            num_attention_heads=heads.attention_heads,
            num_key_value_heads=heads.attention_heads,
            head_dim=heads.head_width,
            rms_norm_eps=EPSILON,
            rope_parameters={"rope_type": "default", "rope_theta": heads.rope_theta},
        )
    )
    inner, nothing = "model.layers.0.", torch.zeros(1, heads.target.width)
    weights = {
        f"{inner}input_layernorm.weight": layer.attention_norm.weight,
        f"{inner}post_attention_layernorm.weight": layer.feed_forward_norm.weight,
        f"{inner}self_attn.q_proj.weight": layer.query.weight,
        f"{inner}self_attn.k_proj.weight": layer.key.weight,
        f"{inner}self_attn.v_proj.weight": layer.value.weight,
        f"{inner}self_attn.o_proj.weight": layer.attention_out.weight,
        f"{inner}mlp.gate_proj.weight": layer.gate.weight,
        f"{inner}mlp.up_proj.weight": layer.up.weight,
        f"{inner}mlp.down_proj.weight": layer.down.weight,
        "model.norm.weight": heads.out_gain,
        "model.embed_tokens.weight": nothing,
        "lm_head.weight": nothing,
    }
    made.load_state_dict(weights, assign=True)
    return made.requires_grad_(False)
