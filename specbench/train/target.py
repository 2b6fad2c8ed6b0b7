"""Training a target: a deep, narrow Llama by next-token prediction on the corpus."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from specbench.parts.heads.rounding import BFLOAT16_MANTISSA_BITS, round_mantissa
from specbench.train.settings import PartSettings, TrainSettings


def new_llama(settings: TrainSettings, part: PartSettings, vocab_size: int) -> LlamaForCausalLM:
    """A Llama of the part's shape (or the settings' where the part says none) with tied embeddings, drawn from `train.seed`."""
    torch.manual_seed(settings.seed)
    attention_heads = part.attention_heads or settings.attention_heads
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=part.width or settings.width,
        intermediate_size=part.feed_forward or settings.feed_forward,
        num_hidden_layers=part.layers,
        num_attention_heads=attention_heads,
        num_key_value_heads=attention_heads,
        max_position_embeddings=settings.max_positions,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config)


def next_token_loss(model: nn.Module, ids: Tensor, autocast: bool) -> Tensor:
    """Mean cross-entropy in nats of each next token; ids (rows, length)."""
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=autocast):
        logits = model(input_ids=ids, use_cache=False).logits
    return nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten())


@torch.no_grad()
def heldout_loss(
    model: nn.Module, streams: Mapping[str, np.ndarray], length: int, max_tokens: int = 60_000
) -> dict[str, float]:
    """Nats per token on each held-out stream, in windows of `length` tokens."""
    losses = {}
    for name, array in streams.items():
        ids = torch.from_numpy(array.astype(np.int64)).to(device_of(model))
        usable = min(len(ids), max_tokens) // length * length
        if usable:
            windows = ids[:usable].view(-1, length).split(4)
            losses[name] = sum(float(next_token_loss(model, w, False)) * len(w) for w in windows) / (usable // length)
    return losses


@torch.no_grad()
def loss_by_position(model: nn.Module, ids: np.ndarray, context: int = 4_096, windows: int = 8) -> dict[str, float]:
    """Nats per token at early and late positions of `windows` windows of `context` tokens; empty for too short a text.

    Rotary positions need no training of their own, but attention over distances that training never showed does change:
    this says by how much.
    """
    count = min(len(ids) // context, windows)
    if count == 0:
        return {}
    device = device_of(model)
    losses = torch.zeros(context - 1, device=device)
    for window in torch.from_numpy(ids[: count * context].astype(np.int64)).view(count, context).to(device):
        logits = model(input_ids=window[None], use_cache=False).logits[0]
        losses += nn.functional.cross_entropy(logits[:-1].float(), window[1:], reduction="none") / count
    edges = [*(edge for edge in (0, 64, 256, 512, 1_024, 2_048) if edge < context - 1), context - 1]
    return {f"{a}-{b}": float(losses[a:b].mean()) for a, b in itertools.pairwise(edges)}


def device_of(model: nn.Module) -> torch.device:
    """Where a model's weights are."""
    return next(model.parameters()).device


def save_model(model: Any, folder: Path, mantissa_bits: int = BFLOAT16_MANTISSA_BITS) -> None:
    """Write `model` as bfloat16 safetensors in shards of at most 15 MB; `model` itself stays as it is.

    mantissa_bits: see `rounding.round_mantissa`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = copy.deepcopy(model).to("cpu", torch.bfloat16)
    with torch.no_grad():
        for parameter in written.parameters():
            parameter.copy_(round_mantissa(parameter, mantissa_bits))
    written.save_pretrained(folder, max_shard_size="15MB")
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # written through a private temporary file
