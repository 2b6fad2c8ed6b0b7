"""Where a schedule of several processes takes them from: this machine, unless `Runtime.machine` names another.

Its calls are looked up when they are made, so that a test may put a thread in a process's place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from specbench.processes import placement
from specbench.processes.mailbox import Mailbox
from specbench.processes.placement import Placement
from specbench.processes.program import Program
from specbench.processes.worker import Worker


class Machine:
    """This machine."""

    def mailbox(self, capacity: int) -> Mailbox:
        """Between two of its processes, for sequences of at most `capacity` output tokens, drafts included."""
        return Mailbox.shared(capacity)

    def split(self, target_device: str, draft_device: str, draft_cores: int, num_drafts: int = 1) -> tuple[Placement, ...]:
        """Cores of the target's process and of its drafts'."""
        return placement.split(target_device, draft_device, draft_cores, num_drafts)

    def worker(
        self, role: str, load: Callable[[], Any], program: Program, placement: Placement, timeout_seconds: float
    ) -> Worker:
        """A process that runs `program` on a model. Raises WorkerError if it does not start."""
        return Worker(role, load, program, placement, timeout_seconds)
