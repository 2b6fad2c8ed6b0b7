"""The optimiser: Muon for the matrices inside the layers, Adam for embeddings and norms; and the learning-rate schedule.

Muon: Jordan et al. (2024), "Muon: An optimizer for hidden layers in neural networks": momentum, then the nearest
semi-orthogonal matrix by a quintic Newton-Schulz iteration, in bfloat16. At a few million parameters it needs far fewer tokens
than Adam.
"""

from __future__ import annotations

import math

import torch
from torch import nn


def make_optimizers(model: nn.Module, matrix_lr: float, other_lr: float, kind: str = "muon") -> list[torch.optim.Optimizer]:
    """Muon for two-dimensional weights inside the layers, Adam for everything else that is not frozen; kind adam: Adam for all.

    On a CPU a step of Muon takes seconds where layers are wide: at width 576 as long as 2,000 tokens forward and back.
    """
    if kind not in ("muon", "adam"):
        raise ValueError(f"train.optimizer={kind!r}: choose muon or adam")
    free = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    matrices = [p for n, p in free if p.ndim == 2 and ".layers." in f".{n}" and kind == "muon"]
    chosen = {id(p) for p in matrices}
    others = [p for _, p in free if id(p) not in chosen]
    adam = torch.optim.AdamW(others, lr=other_lr, betas=(0.9, 0.98), weight_decay=0.0)
    return [torch.optim.Muon(matrices, lr=matrix_lr, weight_decay=0.01), adam] if matrices else [adam]


def learning_rate_factor(progress: float, warmup: float, decay: float, shape: str = "plateau") -> float:
    """Warm-up, plateau, linear decay to zero (progress, warm-up and decay as shares of the budget); or warm-up and a cosine.

    The plateau lets a run be given a smaller or larger budget after it has begun; the cosine (no `decay`) is what heads are
    trained with in the literature. Raises ValueError for another shape.
    """
    if shape not in ("plateau", "cosine"):
        raise ValueError(f"shape={shape!r}: choose plateau or cosine")
    if progress < warmup:
        return max(progress / warmup, 0.02)
    if shape == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * min((progress - warmup) / (1.0 - warmup), 1.0)))
    return max(min(1.0, (1.0 - progress) / decay), 0.0) if decay > 0 else 1.0
