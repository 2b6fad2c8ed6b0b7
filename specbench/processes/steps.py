"""Schedules with several processes are written as step functions, so that a test can interleave them as it likes.

A *side* owns one model and does one small thing per `step`, with at most one look into its inbox or one message sent: whatever
two processes can do to each other, a scheduler that picks the next side can do too, in one process, thousands of times, without
sleeping. `drive` is the same loop for a side that has a process of its own.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from specbench.processes.mailbox import Inbox, sleep_until_news


class Progress(enum.Enum):
    """What a step did: something, nothing for want of news, or nothing for ever."""

    WORKED, IDLE, FINISHED = range(3)


@dataclass(frozen=True)
class Order:
    """One sample, as all sides know it. `number` tags its messages: nothing of an earlier sample is mistaken for news."""

    number: int
    request: Any  # engine.request.Request: this room carries it and does not look


class Side(Protocol):
    """One party of a schedule. After an IDLE step only a change of `inbox` past `seen_version` makes another worthwhile."""

    seen_version: int

    @property
    def inbox(self) -> Inbox: ...

    def step(self) -> Progress:
        """Do the next thing; never blocks."""

    def waited(self, seconds: float) -> None:
        """So long nothing could be done for want of news."""


def drive(side: Side, check: Callable[[], None], timeout_seconds: float) -> None:
    """Step until finished, sleeping while there is no news. `check` raises when the other process is gone.

    Raises PeerLost after `timeout_seconds` without news.
    """
    while (progress := side.step()) is not Progress.FINISHED:
        if progress is Progress.IDLE:
            side.waited(sleep_until_news(side.inbox, side.seen_version, check, timeout_seconds))
