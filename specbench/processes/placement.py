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
        """Pin the calling thread and set the thread count of its forwards; put both back afterwards."""
        from specbench.engine import threads

        before_cores, before_threads = available_cores(), threads.count()
        self.apply()
        try:
            yield
        finally:
            pin(before_cores)
            threads.use(before_threads)

    def apply(self) -> None:
        from specbench.engine import threads

        if self.cores:
            pin(self.cores)
        threads.use(self.threads)


def pin(cores: tuple[int, ...]) -> None:
    """Restrict the calling thread to these cores, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def split(target_device: str, draft_device: str, draft_cores: int = 1, num_drafts: int = 1) -> tuple[Placement, ...]:
    """Placements of the target's process and of those of its drafts; only such as compute on the CPU get cores of their own.

    Where there are too few for all, the target keeps what one draft leaves it, and the drafts share the rest.
    """
    cores = available_cores()
    if target_device != "cpu" or draft_device != "cpu" or len(cores) <= draft_cores:
        # An accelerator's process needs one core to launch work; with a single core they take turns.
        return (Placement((), 1),) * (1 + num_drafts)
    apart = min(num_drafts, (len(cores) - 1) // draft_cores)  # drafts with cores of their own
    mine, theirs = cores[: -apart * draft_cores], cores[-apart * draft_cores :]
    groups = [theirs[n * draft_cores : (n + 1) * draft_cores] for n in range(apart)]
    return Placement(mine, len(mine)), *(Placement(groups[n % apart], draft_cores) for n in range(num_drafts))
