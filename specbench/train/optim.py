"""The optimiser: Muon for the matrices inside the layers, Adam for embeddings and norms; and the learning-rate schedule.

Muon: Jordan et al. (2024), "Muon: An optimizer for hidden layers in neural networks": momentum, then the nearest
semi-orthogonal matrix by a quintic Newton-Schulz iteration. At a few million parameters it needs far fewer tokens than Adam.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Approximate U V^T of each matrix's singular value decomposition; (n, rows, columns), same shape out."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.size(1) > matrices.size(2)
    x = matrices.transpose(1, 2) if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(1, 2) if tall else x


class Muon(torch.optim.Optimizer):
    """Muon over two-dimensional parameters; matrices of one shape are orthogonalised together."""

    def __init__(self, parameters: list[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of all parameters that have a gradient."""
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in by_shape.items():
                updates = []
                for parameter in parameters:
                    state = self.state[parameter]
                    if "momentum" not in state:
                        state["momentum"] = torch.zeros_like(parameter)
                    buffer = state["momentum"]
                    gradient = parameter.grad
                    assert gradient is not None
                    buffer.lerp_(gradient, 1 - group["momentum"])
                    updates.append(gradient.lerp(buffer, group["momentum"]))
                scale = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for parameter, update in zip(parameters, orthogonalise(torch.stack(updates)), strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-scale)


def make_optimizers(model: nn.Module, matrix_lr: float, other_lr: float) -> list[torch.optim.Optimizer]:
    """Muon for two-dimensional weights inside the layers, Adam for everything else."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in f".{n}"]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    adam = torch.optim.AdamW(others, lr=other_lr, betas=(0.9, 0.98), weight_decay=0.0)
    return [Muon(matrices, lr=matrix_lr), adam] if matrices else [adam]


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
