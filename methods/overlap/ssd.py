"""SSD: speculative speculative decoding, as in Saguaro (Kumar, Dao and May, 2603.03251, ICLR 2026).

While the target verifies a draft, the draft model, in a process and on a device of its own, prepares the next one for the
verdicts that are likely, and answers a foreseen one at once (`parts.schedules.foreseeing`). How many branches each accepted
length gets follows the paper's geometric fan-out, with the acceptance rate that the sample has shown so far.

Where this differs from the paper. Messages are integers, never distributions: the rule matches the target's own tokens, which
at temperature > 0 are its keyed samples, and the draft ranks candidates under the same noise. So the output equals
autoregressive decoding token for token, and there is no residual law to shift: the paper's cache-aware sampling, which lowers
the draft's probability of the candidates so that a rejection more often ends in one of them, has no counterpart here. A verdict
that comes while its branch is still growing is answered with what there is of it, not made to wait for the rest; one that has
no token yet is a miss. The budget is the number of branches whose preparation fits into one forward of the target, measured.
Before the first token the likely ones are prepared for too. Sequences come one at a time: the paper's choice of the fallback by
batch size is the option `fallback`.
"""

from __future__ import annotations

import math

from specbench.method import MOST_NODES, Method, Rule, not_together, number, whole
from specbench.parts.schedules.foreseeing.schedule import Foreseeing


class Ssd(Method):
    """draft_length: tokens of a draft at most. budget: branches prepared at a time, or "auto": as many as fit, measured.

    decay: r of the paper's F^-r, the chance that F candidates miss the target's token. fallback: what answers a verdict that
    was not foreseen, draft (at once, the target waits) | lookup (in the text). draft_cores: CPU cores of the draft's process
    when both models run on the CPU. rule: greedy_match | sample_match; null = by temperature. Raises ConfigError for values
    out of range.
    """

    def __init__(
        self,
        *,
        draft_length: int = 4,
        budget: int | str = "auto",
        decay: float = 1.0,
        fallback: str = "draft",
        draft_cores: int = 1,
        rule: str | Rule | None = None,
    ):
        whole("method.budget", budget, 1, auto=True, high=MOST_NODES)
        if isinstance(draft_length, int) and isinstance(budget, int):
            said = "that is {rows} tokens of branches"
            not_together("method.budget", budget, budget * draft_length, MOST_NODES, said, draft_length=draft_length)
        number("method.decay", decay, 0.0, math.inf, "a number from 0 up")
        schedule = Foreseeing(draft_length, None if budget == "auto" else int(budget), fallback, decay, draft_cores)
        super().__init__(schedule=schedule, rule=rule, rules=("greedy_match", "sample_match"), draft_length=draft_length)
