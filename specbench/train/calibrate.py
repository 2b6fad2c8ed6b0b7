"""What trained heads are worth on the target's own greedy text: accuracy by rank and depth, for trees and for the card."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from specbench.config.options import ConfigError
from specbench.parts.heads.base import Heads
from specbench.train.distill import final_hidden
from specbench.train.generate import continuations, mask_after_end
from specbench.train.tokens import load_streams

TOP = 10  # ranks that accuracies are kept for, as in the published trees
PROMPT_TOKENS = 64  # of a calibration prompt


def calibration_prompts(folder: Path) -> tuple[str, list[np.ndarray]]:
    """Where calibration prompts come from, in words, and the token streams: the held-out files, which nothing was trained on.

    A corpus of few files may have none: then those files that prompts of the target's own text are taken from. Raises
    ConfigError for a corpus too small even for that.
    """
    for split, words in (
        ("heldout", "held-out files of the corpus"),
        ("prompts", "the corpus's prompts: no file was held out"),
    ):
        streams = [array for _, array in sorted(load_streams(folder, split).items()) if len(array) >= PROMPT_TOKENS]
        if streams:
            return words, streams
    raise ConfigError(
        "train.source", None, f"too small a corpus: no {PROMPT_TOKENS} tokens of it are left to calibrate heads on"
    )


@torch.no_grad()
def calibration_text(
    target: nn.Module, streams: list[np.ndarray], rows: int, new_tokens: int, eos_ids: list[int], seed: int
) -> Tensor:
    """Greedy text of the target after prompts, int64 (rows, PROMPT_TOKENS + new_tokens), -1 past its end.

    Prompts are windows of PROMPT_TOKENS at places drawn by the seed, from each stream in turn.
    """
    draw = np.random.default_rng([seed, 11])
    windows = []
    for row in range(rows):
        array = streams[row % len(streams)]
        start = int(draw.integers(0, len(array) - PROMPT_TOKENS + 1))
        windows.append(array[start : start + PROMPT_TOKENS].astype(np.int64))
    device = next(target.parameters()).device
    parts = []
    for prompts in torch.from_numpy(np.stack(windows)).to(device).split(64):
        greedy = torch.zeros(len(prompts), device=device)
        written = continuations(target, prompts, new_tokens, greedy, torch.Generator(device))
        parts.append(mask_after_end(written, PROMPT_TOKENS, eos_ids))
    return torch.cat(parts)


def calibrate(heads: Heads, target: nn.Module, ids: Tensor, prompt_tokens: int = PROMPT_TOKENS) -> dict[str, Any]:
    """What the heads are worth on the target's text after prompts of one length; ids (rows, length), -1 past the end."""

    def batches() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for chunk in ids.split(8):
            judged = (torch.arange(chunk.shape[1], device=chunk.device) >= prompt_tokens - 1).expand_as(chunk)
            yield chunk, final_hidden(target, chunk.clamp(min=0), False), judged

    text = f"greedy, at most {ids.shape[1] - prompt_tokens} tokens after prompts of {prompt_tokens}"
    return judge_heads(heads, batches()) | {"text": text}


@torch.no_grad()
def judge_heads(heads: Heads, batches: Iterable[tuple[Tensor, Tensor, Tensor]]) -> dict[str, Any]:
    """What the heads are worth at the judged positions of texts: ids and last hidden states as `Heads.loss` takes them, a mask.

    accuracies[k][r]: share of positions where depth k + 1's candidate of rank r was the text's token (given the text before it,
    for families that look at that). acceptance_by_depth[k]: share of positions where the first candidates of depths 1 to k + 1
    all were. num_positions: positions judged at depth 1. loss: nats, as trained, on the whole rows.
    """
    counts = torch.zeros(heads.max_depth, TOP)
    judged = torch.zeros(heads.max_depth)
    accepted, complete = torch.zeros(heads.max_depth), torch.zeros(heads.max_depth)
    loss, num_texts, was_training = 0.0, 0, heads.training
    heads.eval()
    for chunk, hidden, counted in batches:
        loss += float(heads.loss(chunk, hidden.float())) * len(chunk)
        num_texts += len(chunk)
        ranks = heads.ranks(chunk, hidden.float())[:, counted].cpu()
        for depth, row in enumerate(ranks):
            judged[depth] += (row >= 0).sum()
            counts[depth] += torch.bincount(row[(row >= 0) & (row < TOP)], minlength=TOP)
            inside = (ranks[: depth + 1] >= 0).all(0)
            complete[depth] += inside.sum()
            accepted[depth] += (inside & (ranks[: depth + 1] == 0).all(0)).sum()
    heads.train(was_training)

    def shares(values: Tensor, of: Tensor) -> list[float]:
        return [round(float(x), 5) for x in values / of.clamp(min=1)]

    return {
        "accuracies": [shares(row, total) for row, total in zip(counts, judged, strict=True)],
        "acceptance_by_depth": shares(accepted, complete),
        "num_positions": int(judged[0]),
        "num_prompts": num_texts,
        "loss": round(loss / num_texts, 4),
    }
