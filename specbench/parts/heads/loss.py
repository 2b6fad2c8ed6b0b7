"""What heads learn from a target's text: each depth's guess against the target's distribution there (or against its token)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from specbench.config.options import ABOVE_ZERO, number, one_of
from specbench.parts.heads.base import TargetParts, shifted

OBJECTIVES = ("soft", "hard")


def check_loss_options(decay: float, objective: str) -> None:
    """Raise ConfigError (heads.decay, heads.objective) for what `depth_loss` does not take."""
    number("heads.decay", decay, ABOVE_ZERO, 1.0, "a number above 0 and up to 1")
    one_of("heads.objective", objective, *OBJECTIVES)


def depth_loss(
    logits_at: Callable[[int], Tensor],
    depths: Iterable[int],
    ids: Tensor,
    hidden: Tensor,
    target: TargetParts,
    decay: float,
    objective: str,
) -> Tensor:
    """Mean over depths, weighted decay^depth, of each depth's mean loss over the positions that have a token there; nats.

    logits_at(k): [rows, length, vocab], at t the guess for token t + 1 + k. ids int64 [rows, length], -1 past the end; hidden
    [rows, length, width]. objective soft: KL(target || head), the target's own distribution at t + k being its LM head on
    h[t + k] (Hydra++'s teacher loss, Ankner et al. 2024, section 4; on one text it says more than the token that was drawn);
    hard: cross-entropy with the text's token (Medusa-1, Cai et al. 2024, section 2.2.1). The decay of 0.8 is Medusa's.
    """
    total, weights = hidden.new_zeros((), dtype=torch.float32), 0.0
    for depth in depths:
        tokens = shifted(ids, depth + 1)
        judged = tokens >= 0
        if not judged.any():
            continue
        log_q = logits_at(depth).float().log_softmax(-1)
        if objective == "hard":
            places = target.places_of(tokens)
            judged = places >= 0
            losses = nn.functional.nll_loss(log_q.flatten(0, 1), places.clamp(min=0).flatten(), reduction="none").view_as(
                places
            )
        else:
            with torch.no_grad():
                ahead = nn.functional.pad(hidden[:, depth:], (0, 0, 0, depth))
                log_p = target.guess(ahead).float().log_softmax(-1)
                p = log_p.exp()
            losses = (p * (log_p - log_q)).sum(-1)
        total = total + decay**depth * (losses * judged).sum() / judged.sum().clamp(min=1)
        weights += decay**depth
    return total / max(weights, 1e-9)
