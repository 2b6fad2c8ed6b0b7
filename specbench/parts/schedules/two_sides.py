"""Schedules of two processes: the target's side here, the draft's in a worker; start it, run a sample on both, report, stop.

A schedule of this kind says what the draft's program is and what the target's side: two step functions over a mailbox
(`processes.steps`). The side that decides keeps the books.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, Protocol

from specbench.config.options import ConfigError
from specbench.engine.request import Outcome
from specbench.measure.sensors.clock import now
from specbench.parts.contracts import Needs, Schedule, Setting
from specbench.parts.schedules.books import Books
from specbench.parts.schedules.sides import SideReport
from specbench.processes.machine import Machine
from specbench.processes.mailbox import Mailbox, PeerLost
from specbench.processes.program import Program, WorkerError
from specbench.processes.steps import Order, Side, drive
from specbench.processes.worker import Worker


class TargetSide(Side, Protocol):
    """The side that decides: it keeps the books of the sample."""

    books: Books

    def prepare(self, order: Any) -> None: ...

    def stop(self) -> None:
        """End the sample here, whatever happened, so that the draft stops too."""


@dataclass
class Exchange:
    """One sample, done: when it began and ended on the machine's clock, and the draft's report."""

    start: float
    end: float
    report: Any


class TwoSides(Schedule):
    """The target stays in this process; the draft is loaded and run in a worker on `draft_cores` cores of its own."""

    needs = Needs(draft="worker")
    source = "model"
    worker: Worker | None = None
    mailbox: Mailbox

    def __init__(self, draft_cores: int):
        self.draft_cores = draft_cores

    def open(self, setting: Setting) -> None:
        self.setting, self.number = setting, 0
        self.machine: Machine = setting.runtime.machine or Machine()

    def start_worker(self, program: Program) -> None:
        """Start the draft's process; `self.mailbox` is there already, and the program holds it too.

        Raises ConfigError without a draft, WorkerError if it fails.
        """
        runtime = self.setting.runtime
        pair = runtime.pair
        if pair.draft is None or runtime.load_draft is None:
            raise ConfigError("pair.draft", None, "this method drafts with a model in a process of its own: name one")
        self.placement, draft_placement = self.machine.split(pair.target.device, pair.draft.device, self.draft_cores)
        self.worker = self.machine.worker("draft", runtime.load_draft, program, draft_placement, runtime.timeout_seconds)

    def exchange(self, side: TargetSide, order: Order) -> Exchange:
        """Run one sample. Raises WorkerError when the draft's process is lost; after any other error the next may come."""
        assert self.worker is not None, "open first"
        side.prepare(order)
        self.worker.prepare(order)
        start = now()
        try:
            self.worker.go()
            drive(side, self.worker.check, self.setting.runtime.timeout_seconds)
            end = now()
        except WorkerError:
            raise
        except PeerLost as error:
            self.worker.lost(str(error))
        except BaseException:
            with contextlib.suppress(PeerLost):
                side.stop()
            raise
        return Exchange(start, end, self.worker.result())

    def outcome(self, books: Books, done: Exchange) -> Outcome:
        """The sample's outcome; spans come out on the rounds' clock, without what lies outside the decoding."""
        zero, end = books.decode_start, done.end
        report: SideReport = done.report
        inside = [(a, b, what) for a, b, what in sorted(report.spans) if zero < b and a < end]
        return books.outcome(
            prefill_seconds=zero - done.start,
            decode_seconds=end - zero,
            concurrent_seconds={
                "draft": report.draft_seconds,
                "discarded_draft": report.discarded_seconds,
                "idle": report.idle_seconds,
            },
            started_at=zero,
            spans=[(max(0.0, a - zero), min(b, end) - zero, what) for a, b, what in inside],
        )

    def memory_bytes(self) -> dict[str, int]:
        """The draft's parts are counted in its own process; a draft that no longer answers leaves them out."""
        if self.worker is None:
            return {}
        parts = {"mailbox": self.mailbox.nbytes}
        with contextlib.suppress(WorkerError):
            parts |= {f"draft_{part}": size for part, size in self.worker.memory_bytes().items()}
        return parts

    def pids(self) -> list[int]:
        return [self.worker.pid] if self.worker is not None and self.worker.pid is not None else []

    def close(self) -> None:
        if self.worker is not None:
            self.worker.close()
            self.worker = None
