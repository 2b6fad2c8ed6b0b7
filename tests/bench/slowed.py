"""Autoregressive decoding made slower by a known share: what the statistics must find."""

from __future__ import annotations

from specbench.measure.sensors.clock import now
from specbench.method import EMPTY, Drafter, DraftTree, Evidence, Method, Request


class Slowed(Method):
    """Spins for `share` of the last round's time before each round. share: 0.05 makes decoding take 1.05 times as long."""

    def __init__(self, *, share: float = 0.05, draft_length: int | None = None):
        super().__init__(Spin(share))


class Spin(Drafter):
    """Drafts nothing, and takes its time."""

    def __init__(self, share: float):
        self.share = share

    def begin(self, request: Request, first_token: int, evidence: Evidence) -> None:
        self.last_end: float | None = None

    def propose(self, max_depth: int) -> DraftTree:
        start = now()
        if self.last_end is not None:
            until = start + self.share * (start - self.last_end)
            while now() < until:
                pass
        self.last_end = now()
        return EMPTY
