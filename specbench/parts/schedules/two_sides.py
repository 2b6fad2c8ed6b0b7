"""Schedules of several processes: the target's side here, the draft's in a worker; start it, run a sample, report, stop.

A schedule of this kind says what the draft's program is and what the target's side: two step functions over a mailbox
(`processes.steps`). The side that decides keeps the books. Behind the draft there may be more workers, in a chain.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from specbench.config.options import ConfigError, whole
from specbench.engine.request import Outcome
from specbench.engine.tree import MOST_NODES
from specbench.measure.sensors.clock import now
from specbench.parts.contracts import Needs, Schedule, Setting
from specbench.parts.schedules.books import Books
from specbench.parts.schedules.calibration import CONTEXT, MAX_LENGTH, SECONDS, Calibration, forward_timer
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
    """One sample, done: when it began and ended on the machine's clock; the workers' reports, the target's neighbour first."""

    start: float
    end: float
    reports: list[Any]

    @property
    def report(self) -> Any:
        return self.reports[0]


class TwoSides(Schedule):
    """The target stays in this process; the draft is loaded and run in a worker on `draft_cores` cores of its own.

    num_workers: 1, or the length of the chain of drafts. Raises ConfigError for values out of range.
    """

    needs = Needs(draft="worker")
    source = "model"
    num_workers = 1
    mailbox: Mailbox

    def __init__(self, draft_cores: int):
        whole("method.draft_cores", draft_cores, 1, high=MOST_NODES)
        self.draft_cores = draft_cores
        self.workers: list[Worker] = []
        self.measured: dict[str, float | int | str] = {}  # what opening measured and settled by it

    @property
    def worker(self) -> Worker | None:
        """The target's neighbour."""
        return self.workers[0] if self.workers else None

    def open(self, setting: Setting) -> None:
        self.setting, self.number = setting, 0
        self.machine: Machine = setting.runtime.machine or Machine()

    def start_worker(self, program: Program, role: str = "draft", load: Callable[[], Any] | None = None) -> None:
        """Start the draft's process, or the next one of a chain; the mailbox is there already, and the program holds it too.

        load: makes its model; None for the pair's draft. Raises ConfigError without a draft, WorkerError if it fails.
        """
        runtime = self.setting.runtime
        pair = runtime.pair
        if pair.draft is None or runtime.load_draft is None:
            raise ConfigError("pair.draft", None, "this method drafts with a model in a process of its own: name one")
        placements = self.machine.split(pair.target.device, pair.draft.device, self.draft_cores, self.num_workers)
        self.placement, place = placements[0], placements[1 + len(self.workers)]
        load = load or runtime.load_draft
        self.workers.append(self.machine.worker(role, load, program, place, runtime.timeout_seconds))

    def check(self) -> None:
        """Raise WorkerError if a worker is dead or has reported a failure."""
        for worker in self.workers:
            worker.check()

    def beside(self, seconds: float = SECONDS, target_rows: int = 1, draft_rows: int = 1) -> tuple[float, float]:
        """Seconds of a forward of the target and of the draft, both at work, on the cores that they will have."""
        assert self.worker is not None and self.placement is not None, "open first"
        order = self._calibration(seconds)
        with self.placement.applied():
            self.worker.prepare(replace(order, num_rows=draft_rows))
            measure = forward_timer(self.setting.target, replace(order, num_rows=target_rows))
            self.worker.go()
            busy = measure()
            return busy, self.worker.result()

    def alone(self, seconds: float, target_rows: int) -> float:
        """Seconds of a forward of the target while the draft rests."""
        assert self.placement is not None, "open first"
        with self.placement.applied():
            return forward_timer(self.setting.target, replace(self._calibration(seconds), num_rows=target_rows))()

    def _calibration(self, seconds: float) -> Calibration:
        longest = min(self.setting.target.model.context_length or CONTEXT, CONTEXT + MAX_LENGTH) - MAX_LENGTH
        return Calibration(max(1, longest), seconds)

    def exchange(self, side: TargetSide, order: Order) -> Exchange:
        """Run one sample. Raises WorkerError when the draft's process is lost; after any other error the next may come."""
        assert self.workers, "open first"
        side.prepare(order)
        for worker in self.workers:
            worker.prepare(order)
        start = now()
        try:
            for worker in self.workers:
                worker.go()
            drive(side, self.check, self.setting.runtime.timeout_seconds)
            end = now()
        except WorkerError:
            raise
        except PeerLost as error:
            self.check()
            self.workers[0].lost(str(error))
        except BaseException:
            with contextlib.suppress(PeerLost):
                side.stop()
            raise
        return Exchange(start, end, [worker.result() for worker in self.workers])

    def outcome(self, books: Books, done: Exchange) -> Outcome:
        """The sample's outcome; spans come out on the rounds' clock, without what lies outside the decoding.

        Seconds are all workers' together, spans those of the target's neighbour.
        """
        zero, end = books.decode_start, done.end
        reports: list[SideReport] = done.reports
        inside = [(a, b, what) for a, b, what in sorted(reports[0].spans) if zero < b and a < end]
        return books.outcome(
            prefill_seconds=zero - done.start,
            decode_seconds=end - zero,
            concurrent_seconds={
                "draft": sum(report.draft_seconds for report in reports),
                "discarded_draft": sum(report.discarded_seconds for report in reports),
                "idle": sum(report.idle_seconds for report in reports),
            },
            counted=self.counted(),
            started_at=zero,
            spans=[(max(0.0, a - zero), min(b, end) - zero, what) for a, b, what in inside],
        )

    def memory_bytes(self) -> dict[str, int]:
        """The draft's parts are counted in its own process; a draft that no longer answers leaves them out."""
        if not self.workers:
            return {}
        parts = {"mailbox": self.mailbox.nbytes}
        with contextlib.suppress(WorkerError):
            for worker in self.workers:
                for part, size in worker.memory_bytes().items():
                    parts[f"draft_{part}"] = parts.get(f"draft_{part}", 0) + size
        return parts

    def facts(self) -> dict[str, float | int | str]:
        return self.measured

    def pids(self) -> list[int]:
        return [worker.pid for worker in self.workers if worker.pid is not None]

    def close(self) -> None:
        while self.workers:
            self.workers.pop().close()
