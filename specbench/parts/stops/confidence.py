"""Stop where the draft is unsure of what it has just said (transformers' `assistant_confidence_threshold`, Kangaroo's rule)."""

from __future__ import annotations

import math

from torch import Tensor

from specbench.config.options import number
from specbench.engine.ranks import log_total, score_of
from specbench.parts.contracts import Stop


class Confidence(Stop):
    """threshold: drafting goes on behind a token of at least this probability under the draft's own softmax."""

    def __init__(self, *, draft_length: int | None = None, threshold: float = 0.4):
        number("method.stop.threshold", threshold, 0.0, 1.0, "a probability")
        super().__init__(draft_length)
        self.threshold = threshold

    def goes_on(self, logits: Tensor, token: int) -> bool:
        return math.exp(score_of(logits, 0, token) - log_total(logits, 0)) >= self.threshold
