"""For which verdicts a draft is prepared: how a budget of branches is spread over the accepted lengths (2603.03251, section 4).

With acceptance rate a, independent from token to token, a draft of n tokens is accepted up to length j < n with probability
a^j (1 - a), and whole with a^n. The paper finds that the target's token is missed by the best F candidates with a probability
that falls as F^-r, and that then the best fan-outs are geometric in j, with the last one larger: F_j is proportional to
a^(j / (1 + r)), F_n to a^(n / (1 + r)) (1 - a)^(-1 / (1 + r)).
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence

from torch import Tensor

from specbench.engine.ranks import greatest


def fan_out(budget: int, chances: Sequence[float], decay: float) -> list[int]:
    """Branches for each accepted length, `budget` in all. chances: of these lengths; decay: the paper's r, above 0.

    The paper's optimum in whole numbers: one branch after the other goes where it helps most, the f-th of a length being worth
    its chance times f^-(1 + r) (the slope of F^-r).
    """
    counts = [0] * len(chances)
    waiting = [(-chance, length) for length, chance in enumerate(chances)]
    heapq.heapify(waiting)
    for _ in range(budget if waiting else 0):
        _, length = waiting[0]
        counts[length] += 1
        heapq.heapreplace(waiting, (-chances[length] * (counts[length] + 1) ** -(1 + decay), length))
    return counts


def candidates(scores: Tensor, chain: Sequence[int], count: int, eos_ids: Collection[int]) -> list[list[int]]:
    """The best ids at every place of a draft, at least `count` where the vocabulary has so many, best first.

    scores: [places, V]. Without those that end the text, and the one drafted there: a verdict never corrects to it.
    """
    # One more than is needed: the drafted token is among the best, and so may be every EOS.
    best = greatest(scores, count + 1 + len(eos_ids))[1].tolist()
    drafted = [*chain, None]
    return [[one for one in row if one != token and one not in eos_ids] for row, token in zip(best, drafted, strict=False)]


def length_chances(acceptance: float, length: int) -> list[float]:
    """Of each accepted length 0 to `length` of a draft of so many tokens."""
    return [acceptance**j * (1 - acceptance) for j in range(length)] + [acceptance**length]


class Acceptance:
    """The acceptance rate as far as a sample has shown it; before that, as if a few drafts had been judged."""

    PRIOR_ACCEPTED, PRIOR_JUDGED = 2.8, 4.0

    def __init__(self) -> None:
        self.accepted, self.judged = self.PRIOR_ACCEPTED, self.PRIOR_JUDGED

    def learn(self, num_drafted: int, num_accepted: int) -> None:
        """A round: its first rejected draft was judged, those behind it were not."""
        self.accepted += num_accepted
        self.judged += min(num_drafted, num_accepted + 1)

    @property
    def rate(self) -> float:
        return self.accepted / self.judged
