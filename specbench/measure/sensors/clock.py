"""Time with the right synchronisation: host stamps on a CPU, events on CUDA, read once when a sample is over.

Nothing here synchronises inside a decode loop. The monotonic host clock is the same for all processes of a machine.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_hand: ContextVar[Callable[[], float]] = ContextVar("hand", default=time.perf_counter)


def now() -> float:
    """Seconds of the machine's monotonic clock; within `told_by`, of the one that was given."""
    return _hand.get()()


@contextmanager
def told_by(hand: Callable[[], float]) -> Iterator[None]:
    """In this thread the time is what `hand` says: that of a simulated machine (`specbench.sim`)."""
    before = _hand.set(hand)
    try:
        yield
    finally:
        _hand.reset(before)


_making = [0.0]


def making_seconds() -> float:
    """Spent by this process, and by workers that it waited for meanwhile, on programs to come (compiling, recording): off every
    clock of a sample, and no method's doing."""
    return _making[0]


def made_for(seconds: float) -> None:
    """So much more of it."""
    _making[0] += seconds


class HostClock:
    """Stamps are seconds of the machine's monotonic clock."""

    stamp = staticmethod(now)

    def seconds(self, stamps: list[Any]) -> list[float]:
        """Stamps as seconds since the first one."""
        first = stamps[0] if stamps else 0.0
        return [stamp - first for stamp in stamps]

    def synchronize(self) -> None:
        """Nothing runs behind a CPU's back."""


class CudaClock:
    """Stamps are CUDA events on the current stream of `device`; `seconds` waits for the last one."""

    def __init__(self, device: str):
        import torch

        self._cuda = torch.cuda
        self.device = torch.device(device)

    def stamp(self) -> Any:
        event = self._cuda.Event(enable_timing=True)
        event.record(self._cuda.current_stream(self.device))
        return event

    def seconds(self, stamps: list[Any]) -> list[float]:
        if not stamps:
            return []
        stamps[-1].synchronize()
        return [stamps[0].elapsed_time(stamp) / 1e3 for stamp in stamps]

    def synchronize(self) -> None:
        self._cuda.synchronize(self.device)


def clock_for(device: str) -> HostClock | CudaClock:
    """The clock of the device that the target runs on."""
    return CudaClock(device) if str(device).startswith("cuda") else HostClock()


def reset_memory_peak(device: str) -> None:
    """Start counting the peak of device memory anew (CUDA only)."""
    torch = sys.modules.get("torch")
    if str(device).startswith("cuda") and torch is not None:
        torch.cuda.reset_peak_memory_stats(device)


def memory_peak_bytes(device: str) -> int | None:
    """Peak of allocated device memory since the last reset; None on a CPU, where no allocator counts."""
    torch = sys.modules.get("torch")
    if str(device).startswith("cuda") and torch is not None:
        return int(torch.cuda.max_memory_allocated(device))
    return None
