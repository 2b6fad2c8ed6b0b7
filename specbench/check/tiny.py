"""The pair that the checks make themselves: two tiny random models that agree often, not always.

They are real models of transformers, saved to a folder, because a worker process loads its model by path. The weights are drawn
with a wide spread, so that logits differ by units: a wrong position, mask or cache row then moves an argmax. The draft is the
target without its second layer, which adds a little to the first.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from specbench.config.specs import ModelSpec, PairSpec

VOCAB_SIZE = 24
PROMPTS = ((5,), (1, 2, 3), tuple((11 * i + 3) % VOCAB_SIZE for i in range(19)))
_SECOND_LAYER = 0.6  # scale of what the second layer adds: the two agree on about half of all tokens


def make_tiny_pair(folder: Path) -> PairSpec:
    """Write both models below `folder` and specify them."""
    transformers_logging.disable_progress_bar()
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        initializer_range=0.35,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = LlamaForCausalLM(config).requires_grad_(False)
    second = model.model.layers[1]
    for projection in (second.self_attn.o_proj, second.mlp.down_proj):
        projection.weight.mul_(_SECOND_LAYER)
    model.save_pretrained(folder / "target")
    del model.model.layers[1]
    model.config.num_hidden_layers = 1
    model.save_pretrained(folder / "draft")

    def spec(role: str) -> ModelSpec:
        return ModelSpec(role, f"tiny {role}", str(folder / role), "float32", "cpu", None, "sdpa", False)

    return PairSpec("tiny", spec("target"), spec("draft"), VOCAB_SIZE)
