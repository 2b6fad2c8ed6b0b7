"""Which CPU cores and how many threads each process gets: two processes that share cores would measure each other.

A two-thread forward beside a busy process slows tens of times, a one-thread forward on a core of its own does not.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


def available_cores() -> tuple[int, ...]:
    """The cores that this process may use (all of them where the system cannot say)."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


@dataclass(frozen=True)
class Placement:
    """Cores (empty: leave as they are) and intra-op threads of one process while it is on the clock."""

    cores: tuple[int, ...]
    threads: int

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Pin the calling thread and set torch's thread count; put both back afterwards."""
        import torch

        before_cores, before_threads = available_cores(), torch.get_num_threads()
        self.apply()
        try:
            yield
        finally:
            pin(before_cores)
            if before_threads != self.threads:
                torch.set_num_threads(before_threads)

    def apply(self) -> None:
        import torch

        if self.cores:
            pin(self.cores)
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)


def pin(cores: tuple[int, ...]) -> None:
    """Restrict the calling thread to these cores, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def split(target_device: str, draft_device: str, draft_cores: int = 1) -> tuple[Placement, Placement]:
    """Placements of the target's and the draft's process; only processes that compute on the CPU get cores of their own."""
    cores = available_cores()
    if target_device != "cpu" or draft_device != "cpu" or len(cores) <= draft_cores:
        # An accelerator's process needs one core to launch work; with a single core the two take turns.
        shared = Placement((), 1)
        return shared, shared
    mine, theirs = cores[:-draft_cores], cores[-draft_cores:]
    return Placement(mine, len(mine)), Placement(theirs, len(theirs))
