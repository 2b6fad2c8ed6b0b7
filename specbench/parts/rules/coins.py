"""Where a rule's randomness comes from: two coins, so that the same rule can be run or enumerated branch by branch."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class RuleRng(Protocol):
    """What an acceptance rule may ask of chance."""

    def bernoulli(self, probability: float) -> bool:
        """True with this probability (in [0, 1])."""
        ...

    def categorical(self, probabilities: Tensor) -> int:
        """An index drawn in proportion to probabilities [V], float64, which sum to 1 up to rounding."""
        ...


class TorchRng:
    """RuleRng on an explicit CPU generator; the distributions may live on any device, and the draw does not depend on it.

    A draft that samples needs a stream of its own: two generators with one seed would make the rule's coins a function of the
    drafted tokens, and the output would be biased. Sharing one generator object is fine.
    """

    def __init__(self, generator: torch.Generator):
        self.generator = generator

    @classmethod
    def seeded(cls, seed: int) -> TorchRng:
        return cls(torch.Generator().manual_seed(seed))

    def _uniform(self) -> float:
        return torch.rand((), dtype=torch.float64, generator=self.generator).item()

    def bernoulli(self, probability: float) -> bool:
        return self._uniform() < probability

    def categorical(self, probabilities: Tensor) -> int:
        cumulative = probabilities.double().cumsum(0)
        # The first index whose cumulative probability exceeds the draw: a token of probability 0 never is.
        index = int(torch.searchsorted(cumulative, cumulative[-1:] * self._uniform(), right=True).item())
        if index == len(probabilities):  # rounding carried the draw up to the total itself
            index = int(probabilities.nonzero()[-1].item())
        return index
