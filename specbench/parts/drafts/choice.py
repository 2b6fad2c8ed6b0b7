"""How a draft turns its logits into tokens, so that the rule that judges them stays exact and accepts as often as it can."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from specbench.engine.ranks import greatest
from specbench.engine.sampling import keyed_gumbel
from specbench.engine.tree import Contract

if TYPE_CHECKING:
    from specbench.engine.request import Request
    from specbench.engine.sampling import SamplingLaw
    from specbench.engine.session import Session
    from specbench.engine.target import Chaining
    from specbench.parts.rules.rule import Rule

OWN_STREAM = 0x5DEECE66D  # the draft's coins must not be the rule's: with one seed for both the output would be biased


def at_once(
    session: Session, ids: Sequence[int], length: int, law: SamplingLaw, position: int, noise_key: int
) -> Sequence[int] | None:
    """`length` tokens behind ids that are fed first, without a draw and as one program; None where the session cannot."""
    if "chain" not in session.can:
        return None
    return cast("Chaining", session).chain(ids, length, law, position, noise_key)


class Choice:
    """One per run; `begin` per sample.

    draws: the rule wants tokens drawn from the draft's own law (ratio rules). shares_noise: the rule compares with the target's
    keyed samples, so the draft uses the same noise and the two agree as often as their laws allow. vocab_size: the target's.
    """

    def __init__(self, law: SamplingLaw, rule: Rule, vocab_size: int, device: torch.device | str):
        self.law, self.vocab_size, self.device = law, vocab_size, device
        self.draws = Contract.FIXED_SET not in rule.accepts
        self.shares_noise = not law.greedy and rule.reads == "choice"
        self.noise_key = 0

    def begin(self, request: Request) -> None:
        self.noise_key = request.noise_key
        if self.draws:
            # Its own stream, apart from the rule's: the same seed gives the same drafts whatever the rule draws.
            self.generator = torch.Generator(self.device).manual_seed(request.noise_key ^ OWN_STREAM)

    def token(self, logits: Tensor, position: int) -> int:
        """The token for an output position, from logits [1, vocab], without a draw."""
        return self.law.choose(logits, [position], self.noise_key)[0]

    def tokens(self, session: Session, ids: Sequence[int], length: int, position: int) -> Sequence[int] | None:
        """`length` of them behind ids that are fed first, where the session can draft a chain at once; None where it cannot."""
        return at_once(session, ids, length, self.law, position, self.noise_key)

    def laws(self, logits: Tensor) -> Tensor:
        """The draft's own laws [n, vocab_size], warped as the target's, of logits [n, vocab]."""
        q = self.law.probabilities(logits)
        # Ids that the draft has no row for are never drafted.
        return torch.nn.functional.pad(q, (0, self.vocab_size - q.shape[1])) if q.shape[1] < self.vocab_size else q

    def draw(self, logits: Tensor) -> tuple[int, Tensor]:
        """A token drawn from the draft's law, and that law [vocab_size]."""
        q = self.laws(logits)[0]
        return int(torch.multinomial(q, 1, generator=self.generator)), q

    def noise(self, position: int) -> Tensor:
        """The target's own noise at an output position, [vocab_size]: what it adds to its warped logits."""
        return keyed_gumbel(self.noise_key, [position], self.vocab_size, self.device)[0]

    def race(self, q: Tensor) -> Tensor:
        """q [n, vocab_size] over exponential noise: its logarithms are those of q, perturbed by Gumbel noise."""
        return q / torch.empty_like(q).exponential_(generator=self.generator)

    def draw_many(self, q: Tensor, count: int, replacement: bool) -> list[list[int]]:
        """`count` tokens of each law q [n, vocab_size] in the order in which they were drawn; tokens of probability 0 never.

        Without replacement by an exponential race (the smallest of Exp(q[x]) first is a draw, the next a draw from what is
        left): one pass over the vocabulary for all of them, and fewer tokens than `count` where no more have a chance.
        """
        if replacement:
            return torch.multinomial(q, count, replacement=True, generator=self.generator).tolist()
        values, tokens = greatest(self.race(q), count)
        able = (values > 0).sum(-1).tolist()
        return [row[:length] for row, length in zip(tokens.tolist(), able, strict=True)]

    def scores(self, logits: Tensor, position: int) -> Tensor:
        """What ranks tokens, [n, vocab]: logits; at a temperature warped as the target's, plus its noise where that counts."""
        if self.law.greedy:
            return logits
        scores = self.law.warp(logits)
        if self.shares_noise:
            scores = scores + keyed_gumbel(self.noise_key, [position], logits.shape[1], logits.device)
        return scores
