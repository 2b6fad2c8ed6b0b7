"""Teaching a small target not to loop: unlikelihood on its own repetitions.

A model of a few million parameters, decoded greedily, soon repeats itself for ever, and a loop makes every draft look good.
Sequence-level unlikelihood training (Welleck et al. 2020, "Neural Text Generation with Unlikelihood Training") lowers the
probability of those tokens of its own greedy text that complete an n-gram seen before in it; corpus text keeps the rest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from specbench.config.options import ConfigError
from specbench.train.generate import continuations
from specbench.train.settings import SHORTEST_PROMPT
from specbench.train.tokens import PackedBatches

PROMPT_LENGTHS = (SHORTEST_PROMPT, 64, 96, 128, 160)
IGNORED, LIKELY, UNLIKELY = 0, 1, 2


def repeated(ids: list[int], start: int, n: int = 4) -> list[bool]:
    """For each token of ids[start:]: whether it completes an n-gram that ids[start:] already held before it."""
    seen: set[tuple[int, ...]] = set()
    marks = []
    for end in range(start + 1, len(ids) + 1):
        gram = tuple(ids[max(start, end - n) : end])
        marks.append(len(gram) == n and gram in seen)
        seen.add(gram)
    return marks


def refining_loss(model: nn.Module, ids: Tensor, marks: Tensor, strength: float, autocast: bool) -> Tensor:
    """Cross-entropy on LIKELY tokens and `strength` times unlikelihood, -log(1 - p), on UNLIKELY ones.

    ids, marks (rows, length); marks says what each token is to its own prediction. The unlikelihood is averaged over all
    tokens of the rows that hold any mark other than LIKELY, so it fades as the repetitions do.
    """
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=autocast):
        logits = model(input_ids=ids, use_cache=False).logits
    log_p = logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    kind = marks[:, 1:]
    likely, unlikely = (kind == LIKELY).float(), (kind == UNLIKELY).float()
    loss = -(log_p * likely).sum() / likely.sum().clamp(min=1)
    own = (kind != LIKELY).sum().clamp(min=1)
    # log(1 - p) from log p; p = 1 would be infinite.
    return loss - strength * (torch.log1p(-log_p.exp().clamp(max=1 - 1e-5)) * unlikely).sum() / own


@torch.no_grad()
def mix(model: nn.Module, other: nn.Module, share: float) -> None:
    """Move `model`'s weights the given share of the way to `other`'s, in place.

    Between a model and its refinement on a straight line (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models")
    most of the lost likelihood comes back before the repetitions do.
    """
    for own, theirs in zip(model.parameters(), other.parameters(), strict=True):
        own.lerp_(theirs, share)


class LoopBatches:
    """Half of each batch is the model's own greedy text with its repetitions marked, half is corpus text.

    The own text is written by the model as it is at that moment, `generate_rows` rows at a time, and each row is used once.
    """

    def __init__(
        self, model: nn.Module, prompts: list[list[int]], corpus: PackedBatches, seed: int, generate_rows: int, length: int
    ):
        self.model, self.prompts, self.corpus, self.seed, self.generate_rows = model, prompts, corpus, seed, generate_rows
        self.lengths = [n for n in PROMPT_LENGTHS if n <= length // 2 and any(len(p) >= n for p in prompts)]
        if not self.lengths:
            raise ConfigError("train.length", length, f"no prompt of at least {SHORTEST_PROMPT} tokens fits in half of it")
        self.generations = 0
        self.ids = self.marks = torch.zeros(0, length, dtype=torch.int64)
        self.repeated_share: list[float] = []

    def next(self, rows: int, length: int) -> tuple[Tensor, Tensor]:
        """Ids and marks, int64 (rows, length)."""
        own = min(rows // 2, self.generate_rows)
        if len(self.ids) < own:
            self._generate(length)
        ids, marks = self.ids[:own], self.marks[:own]
        self.ids, self.marks = self.ids[own:], self.marks[own:]
        corpus = self.corpus.next(rows - own, length)
        return torch.cat([ids, corpus]), torch.cat([marks, torch.full_like(corpus, LIKELY)])

    def _generate(self, length: int) -> None:
        draw = np.random.default_rng([self.seed, 9, self.generations])
        self.generations += 1
        size = int(draw.choice(self.lengths))
        usable = [p for p in self.prompts if len(p) >= size]
        prompts = torch.tensor([usable[i][:size] for i in draw.integers(0, len(usable), self.generate_rows)])
        self.model.eval()
        device = next(self.model.parameters()).device
        greedy = torch.zeros(len(prompts), device=device)
        rows = continuations(self.model, prompts.to(device), length - size, greedy, torch.Generator(device)).cpu()
        self.model.train()
        marks = [[IGNORED] * size + [UNLIKELY if r else IGNORED for r in repeated(row, size)] for row in rows.tolist()]
        self.ids, self.marks = rows, torch.tensor(marks)
        self.repeated_share.append(float((self.marks[:, size:] == UNLIKELY).float().mean()))
        print(f"\n{self.repeated_share[-1]:.2f} of the model's own tokens repeat an n-gram", flush=True)

    def state_dict(self) -> dict[str, Any]:
        """The position, with the rows that wait."""
        names = ("generations", "ids", "marks", "repeated_share")
        return {name: getattr(self, name) for name in names} | {"corpus": self.corpus.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a position that `state_dict` gave."""
        for name in ("generations", "ids", "marks", "repeated_share"):
            setattr(self, name, state[name])
        self.corpus.load_state_dict(state["corpus"])
