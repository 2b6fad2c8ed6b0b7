"""EAGLE's layer on the native engine: it is a Llama of one layer that is fed states instead of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig

from specbench.engine.backends.native.session import NativeBranching
from specbench.engine.layers import empty
from specbench.engine.model import Model
from specbench.methods.heads.eagle.draft import FeatureDraft
from specbench.methods.heads.eagle.heads import EPSILON, EagleHeads

FEATURES = -1  # the tap behind the last norm


class NativeFeatureDraft(FeatureDraft):
    """The same calls and, up to rounding, the same predictions as `FeatureDraft`."""

    def __init__(self, heads: EagleHeads, vocab_size: int):
        super().__init__(heads, vocab_size)
        self._session = NativeBranching(Model.wrap(as_llama(heads)).run_natively(), taps=(FEATURES,))

    @property
    def nbytes(self) -> int:
        return self._session.nbytes

    def start(self, capacity: int) -> None:
        self._session.start(capacity)
        self.length = self.num_forwards = 0

    @torch.inference_mode()
    def extend(self, features: Tensor, ids: Sequence[int]) -> Tensor:
        self._session.feed(self._joined(features, ids), last_only=True)
        self._session.branch()
        self._level = -1  # the number of the first row of the last level below the text
        return self._predicted()[-1:]

    @torch.inference_mode()
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
        return self.heads.join(features, torch.tensor(ids))

    def _predicted(self) -> Tensor:
        return self._session.tapped[FEATURES] + self.heads.out_bias


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
