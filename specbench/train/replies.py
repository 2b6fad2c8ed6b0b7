"""Replies of a chat model to prompts of unequal lengths, in one batch that shrinks, with its last hidden states."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, StaticCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from specbench.train.generate import choose

DROP_EVERY = 32  # tokens between looks for rows that have ended


def grouped_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float, **rest: Any
) -> tuple[Tensor, None]:
    """Attention of one new row per text without a copy of its keys for every query head: half of a step's time on a CPU."""
    rows, heads, length, width = query.shape
    if length > 1 or attention_mask is None or attention_mask.dtype != torch.bool:
        attended, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **rest)
        return attended, None
    scores = query.view(rows, key.shape[1], heads // key.shape[1], width) @ key.transpose(2, 3) * scaling
    weights = scores.masked_fill(~attention_mask, float("-inf")).softmax(-1)
    return (weights @ value).view(rows, 1, heads, width), None


def writer_of(target: Any, autocast: bool) -> Any:
    """A copy of the target that writes: in bfloat16 where products are, with `grouped_attention`."""
    AttentionInterface.register("grouped", grouped_attention)
    AttentionMaskInterface.register("grouped", sdpa_mask)
    writer = copy.deepcopy(target)
    writer.set_attn_implementation("grouped")
    return writer.bfloat16() if autocast else writer


@torch.no_grad()
def replies(
    target: Any,
    prompts: list[list[int]],
    new_tokens: int,
    temperatures: Tensor,
    generator: torch.Generator,
    eos_ids: set[int],
) -> list[tuple[list[int], Tensor]]:
    """Each prompt with its reply (up to its end token), and the LM head's input at every token but the last.

    Prompts are padded on the left; rows that have ended leave the batch from time to time, so that nothing is computed for
    them.
    """
    device, longest = temperatures.device, max(map(len, prompts))
    fed = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
    pads = torch.tensor([longest - len(prompt) for prompt in prompts], device=device)
    cache = StaticCache(config=target.config, max_cache_len=longest + new_tokens)
    visible = (torch.arange(longest + new_tokens, device=device)[None] >= pads[:, None]).long()
    texts, states = [list(prompt) for prompt in prompts], [[] for _ in prompts]  # type: ignore[var-annotated]
    left = list(range(len(prompts)))
    for step in range(new_tokens):
        start = longest + step - fed.shape[1]
        positions = (torch.arange(start, longest + step, device=device)[None] - pads[:, None]).clamp(min=0)
        output = target(
            input_ids=fed,
            attention_mask=visible,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            output_hidden_states=True,
        )
        hidden = output.hidden_states[-1].half()
        chosen = choose(output.logits[:, -1].float(), temperatures, generator)
        del output
        for place, row in enumerate(left):
            if step == 0:
                states[row].append(hidden[place, pads[place] :].clone())
            elif texts[row][-1] not in eos_ids:
                states[row].append(hidden[place])
        for row, token in zip(left, chosen.tolist(), strict=True):
            if step == 0 or texts[row][-1] not in eos_ids:
                texts[row].append(token)
        fed = chosen[:, None]
        if step % DROP_EVERY == DROP_EVERY - 1 or step == 0:
            kept = [place for place, row in enumerate(left) if texts[row][-1] not in eos_ids]
            if not kept:
                break
            if len(kept) < len(left):
                at = torch.tensor(kept, device=device)
                fed, pads, visible, temperatures = fed[at], pads[at], visible[at], temperatures[at]
                layers: list[Any] = cache.layers
                for layer in layers:
                    layer.keys, layer.values = layer.keys[at], layer.values[at]
                left = [left[place] for place in kept]
    return [(text[: sum(map(len, state))], torch.cat(state)) for text, state in zip(texts, states, strict=True)]
