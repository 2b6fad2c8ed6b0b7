"""Stop where the draft's entropy bounds acceptance too low: AdaEDL (Agrawal et al. 2410.18351), SVIP (Zhang et al. 2411.18462).

Both papers bound the chance that the target accepts a token from below by 1 - sqrt(gamma H), H the entropy in nats of the law
of the draft's that the token came from. AdaEDL goes on while that is at least a threshold which follows the acceptance that is
met; SVIP goes on while sqrt(H) is at most one that stays.

Of the papers: the bound, gamma 0.2, and that AdaEDL's threshold moves as that of Draft & Verify does (Zhang et al. 2309.08168).
Ours: the thresholds begun with, the constants of that rule (`AIM`, `STEP`, the two shares), that a sample begins anew, and that
a stop speaks behind the token of the law it looked at, as all stops here do: it looks at no drawn token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from specbench.config.options import number, one_of
from specbench.parts.contracts import Stop

if TYPE_CHECKING:
    from torch import Tensor

    from specbench.engine.request import Request

GAMMA = 0.2
AIM, STEP = 0.8, 0.01  # acceptance that the threshold is moved towards, and by how much
KEPT_ACCEPTANCE, KEPT_THRESHOLD = 0.5, 0.9  # share of the old value in each moving average
THRESHOLDS = {"adaedl": 0.4, "svip": 0.6}


def entropy_nats(logits: Tensor) -> float:
    """Entropy of softmax(logits [1, vocab]); logits of -inf are tokens that the law has not."""
    return float(torch.special.entr(logits[0].float().softmax(-1)).sum())


class Entropy(Stop):
    """form: adaedl | svip. threshold: of the bound on acceptance that drafting goes on above (adaedl, where it begins: 0.4), or
    of sqrt(H) that it goes on below (svip: 0.6); null: the form's.
    """

    def __init__(self, *, draft_length: int | None = None, form: str = "adaedl", threshold: float | None = None):
        one_of("method.stop.form", form, *THRESHOLDS)
        number("method.stop.threshold", threshold, 0.0, 10.0, "a number from 0 to 10, or null (the form's)", null=True)
        super().__init__(draft_length)
        self.form, self.given = form, THRESHOLDS[form] if threshold is None else threshold
        self.threshold, self.acceptance = self.given, AIM

    def begin(self, request: Request) -> None:
        self.threshold, self.acceptance = self.given, AIM

    def goes_on(self, logits: Tensor, token: int) -> bool:
        root = entropy_nats(logits) ** 0.5
        return root <= self.threshold if self.form == "svip" else 1.0 - GAMMA**0.5 * root >= self.threshold

    def learn(self, num_drafted: int, num_accepted: int) -> None:
        if self.form == "svip" or not num_drafted:
            return
        self.acceptance += (1 - KEPT_ACCEPTANCE) * (num_accepted / num_drafted - self.acceptance)
        towards = self.threshold + (STEP if self.acceptance < AIM else -STEP)
        self.threshold += (1 - KEPT_THRESHOLD) * (towards - self.threshold)
