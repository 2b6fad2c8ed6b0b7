"""DSI: distributed speculative inference (Timor et al., 2405.14105), with the one target server that a pair has.

The drafter never waits. Whenever `draft_length` more tokens are drafted (the paper's lookahead), a server of the target begins
to verify them while drafting goes on; a rejection ends what was drafted behind it. The paper's equation for the lookahead
asks that the servers keep up: target latency / (lookahead x drafter latency), rounded up, is at most their number, SP.

With SP = 1 this is the free-running schedule of AMUSD with the lookahead as the number of drafts that the target waits for,
and this file is no more than that, with the equation's smallest lookahead, measured, as the default. What deviates: one server,
so verifications do not overlap each other; it takes everything that is drafted when it begins, where the paper's takes one
lookahead; look-ahead is bounded; and the paper's target threads that start at every token, so as never to be slower than
without drafts, are AMUSD's plain step behind a stale draft. At temperature > 0 the draft uses the target's noise, so the output
equals autoregressive sampling token for token. More servers are for the simulated clock.
"""

from __future__ import annotations

from specbench.method import MOST_NODES, Method, Rule, whole
from specbench.parts.schedules.free_running.schedule import FreeRunning


class Dsi(Method):
    """draft_length: the lookahead, or "auto": the forwards of the draft in one of the target, measured, rounded up.

    max_lookahead: drafts ahead of the verified. draft_cores: CPU cores of the draft's process when both models run on the CPU.
    rule: greedy_match | sample_match; null = by temperature. Raises ConfigError for values out of range.
    """

    def __init__(
        self,
        *,
        draft_length: int | str = "auto",
        max_lookahead: int = 32,
        draft_cores: int = 1,
        rule: str | Rule | None = None,
    ):
        whole("method.draft_length", draft_length, 1, auto=True, high=MOST_NODES)
        length = None if draft_length == "auto" else int(draft_length)
        schedule = FreeRunning(length, max_lookahead, "plain", draft_cores, None)
        super().__init__(schedule=schedule, rule=rule, rules=("greedy_match", "sample_match"), draft_length=length)
