"""AMUSD: asynchronous multi-device speculative decoding (McDanel, 2410.17375).

Draft and target run at once, each in its own process on its own device (`parts.schedules.free_running`).

Where this differs from the published code (whose two shared counters drift apart): the tokens themselves say whether a draft
stands on the committed prefix, and an epoch counts contradictions, so a stale draft can cost a step and never correctness. The
draft has a bounded look-ahead and stops at EOS and length limit. Greedy output equals the target's own; at temperature > 0 (the
paper has none) the target's tokens are its keyed samples and the draft uses the same noise, so the output equals autoregressive
sampling token for token.
"""

from __future__ import annotations

from specbench.method import Method, Rule, Stop
from specbench.parts.schedules.free_running.schedule import FreeRunning


class Amusd(Method):
    """draft_length: drafts the target waits for (published: 2; 0: never waits). max_lookahead: drafts ahead of the verified.

    stale: plain | wait (see `Verifier`). draft_cores: CPU cores of the draft's process when both models run on the CPU. stop:
    fixed (max_lookahead alone), or another name or node (docs/options.md): holds the draft back until the next verdict.
    rule: greedy_match | sample_match; null = by temperature. Raises ConfigError for values out of range.
    """

    def __init__(
        self,
        *,
        draft_length: int = 2,
        max_lookahead: int = 16,
        stale: str = "plain",
        draft_cores: int = 1,
        stop: str | Stop | None = None,
        rule: str | Rule | None = None,
    ):
        schedule = FreeRunning(draft_length, max_lookahead, stale, draft_cores, stop)
        super().__init__(schedule=schedule, rule=rule, rules=("greedy_match", "sample_match"), draft_length=draft_length)
