"""Batched continuations of a model: many prompts of one length, greedy or sampled, on a preallocated cache."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import StaticCache


@torch.no_grad()
def continuations(
    model: nn.Module, prompts: Tensor, new_tokens: int, temperatures: Tensor, generator: torch.Generator
) -> Tensor:
    """Prompts and what the model writes after them.

    `prompts` (rows, prompt length) int64; `temperatures` (rows,), 0 for greedy; all, `generator` too, on the model's device.
    Returns (rows, prompt length + new_tokens).
    The text runs on past an end-of-text token: cut it with `mask_after_end`.
    """
    length = prompts.shape[1]
    cache = StaticCache(config=model.config, max_cache_len=length + new_tokens)  # type: ignore[arg-type]
    rows = torch.empty(prompts.shape[0], length + new_tokens, dtype=torch.int64, device=prompts.device)
    rows[:, :length] = prompts
    fed = prompts
    with torch.compiler.set_stance("force_eager"):  # layers compiled for training would be compiled again for this cache
        for position in range(length, length + new_tokens):
            positions = torch.arange(position - fed.shape[1], position, device=prompts.device)
            logits = model(
                input_ids=fed, past_key_values=cache, position_ids=positions[None], use_cache=True, logits_to_keep=1
            ).logits[:, -1]
            fed = choose(logits.float(), temperatures, generator)[:, None]
            rows[:, position] = fed[:, 0]
    return rows


def choose(logits: Tensor, temperatures: Tensor, generator: torch.Generator) -> Tensor:
    """One token per row: the most likely where the temperature is 0, else drawn; logits (rows, vocabulary)."""
    noise = torch.rand(logits.shape, generator=generator, device=logits.device).clamp_(min=1e-20).log_().neg_().log_().neg_()
    return (logits + noise * temperatures[:, None]).argmax(-1)


def mask_after_end(rows: Tensor, prompt_length: int, eos_ids: list[int]) -> Tensor:
    """`rows` with -1 in place of everything after the first end-of-text token that follows the prompt."""
    ended = torch.isin(rows[:, prompt_length:], torch.tensor(eos_ids, device=rows.device)).int()
    after = (ended.cumsum(1) - ended) > 0
    masked = rows.clone()
    masked[:, prompt_length:][after] = -1
    return masked


def distinct_share(ids: list[int], n: int = 4) -> float | None:
    """Distinct n-grams over all n-grams of a text; None for a text shorter than `n`. A loop has a share near zero."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None
