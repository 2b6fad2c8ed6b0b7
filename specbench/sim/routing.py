"""How many experts a verification touches: rows that go to different experts read different weights (no speed is claimed).

A dense target reads its weights once whatever the number of rows; of a mixture of experts, k + 1 rows read every expert that
one of them is sent to. Recorded from a model's own routers, beside what independent uniform routing would touch:
E (1 - (1 - m / E)^rows) of E experts with m for each row.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Touched:
    """Rows of one forward, distinct experts that they touch in a layer (mean over layers and places), the uniform figure, and
    bytes of weights that the forward reads over those of one row."""

    rows: int
    experts: float
    uniform: float
    weight_bytes_ratio: float


def uniform_experts(num_experts: int, per_token: int, rows: int) -> float:
    """Distinct experts that rows touch when each is sent to `per_token` of them, any set as likely as any other."""
    return num_experts * (1.0 - (1.0 - per_token / num_experts) ** rows)


class RouterTrace(AbstractContextManager["RouterTrace"]):
    """Records what a transformers mixture's routers choose, layer by layer: `chosen[layer]` is [tokens, per_token].

    Raises ValueError for a model in which no router is found.
    """

    def __init__(self, module: Any, per_token: int):
        self.per_token = per_token
        self.chosen: dict[str, list[Tensor]] = {}
        self._handles: list[Any] = []
        self._routers = [(name, part) for name, part in module.named_modules() if name.endswith((".gate", ".router"))]
        if not self._routers:
            raise ValueError(f"{type(module).__name__} has no router that is called gate or router")

    def __enter__(self) -> RouterTrace:
        for name, part in self._routers:
            self._handles.append(part.register_forward_hook(lambda _, __, output, name=name: self._note(name, output)))
        return self

    def _note(self, name: str, output: Any) -> None:
        logits = output[0] if isinstance(output, tuple) else output
        self.chosen.setdefault(name, []).append(logits.reshape(-1, logits.shape[-1]).topk(self.per_token).indices.cpu())

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def layers(self) -> list[Tensor]:
        return [torch.cat(parts) for parts in self.chosen.values()]


def distinct_experts(chosen: Tensor, rows: int) -> float:
    """Mean number of distinct experts over all windows of `rows` consecutive tokens of chosen [tokens, per_token]."""
    windows = chosen.unfold(0, rows, 1).flatten(1)  # [places, per_token * rows]
    ordered = windows.sort(1).values
    return float(((ordered[:, 1:] != ordered[:, :-1]).sum(1) + 1).float().mean())


def report(
    layers: Sequence[Tensor], num_experts: int, per_token: int, rows: Sequence[int], dense_bytes: float, expert_bytes: float
) -> list[Touched]:
    """What forwards of these rows touch. dense_bytes: of a layer, read by every forward; expert_bytes: of one expert."""
    one = dense_bytes + per_token * expert_bytes
    found = []
    for count in rows:
        experts = sum(distinct_experts(chosen, count) for chosen in layers) / len(layers)
        ratio = (dense_bytes + experts * expert_bytes) / one
        found.append(Touched(count, experts, uniform_experts(num_experts, per_token, count), ratio))
    return found


def tiny_mixture(num_experts: int, per_token: int, seed: int = 0) -> Any:
    """A small Mixtral with random weights: what its routers do is chance, and the report's mechanics are real."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(seed)
    config = MixtralConfig(
        vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=num_experts, num_experts_per_tok=per_token, max_position_embeddings=1024,
    )  # fmt: skip
    return MixtralForCausalLM(config).eval()


def of_tiny_mixture(num_experts: int, per_token: int, rows: Sequence[int], tokens: int, seed: int) -> list[Touched]:
    """The report on a greedy text of its own, routers recorded while it is fed."""
    model = tiny_mixture(num_experts, per_token, seed)
    prompt = torch.randint(0, 256, (1, 8), generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        text = model.generate(prompt, max_new_tokens=tokens, do_sample=True, pad_token_id=0)
        with RouterTrace(model, per_token) as trace:
            model(text)
    first = model.model.layers[0]
    total = sum(p.numel() * p.element_size() for p in first.parameters())
    experts = sum(p.numel() * p.element_size() for name, p in first.named_parameters() if ".experts." in name)
    return report(trace.layers(), num_experts, per_token, rows, total - experts, experts / num_experts)
