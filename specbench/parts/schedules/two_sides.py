"""Base of methods whose draft runs in a process of its own: start it, run a sample on both sides, supervise, report, stop.

What is theirs: the draft's program and the target's side, two step functions over a mailbox (`engine.steps`).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, Protocol

from specbench.config.options import ConfigError
from specbench.engine.request import Outcome
from specbench.engine.runtime import Runtime
from specbench.measure.records.events import Round
from specbench.measure.sensors.clock import now
from specbench.method import Method, Needs
from specbench.processes.mailbox import Mailbox, PeerLost
from specbench.processes.placement import split
from specbench.processes.steps import Order, Side, drive
from specbench.processes.worker import Program, Worker, WorkerError


class TargetSide(Side, Protocol):
    """The side that decides: it holds the output and the rounds of the sample."""

    output: list[int]
    finish: str | None
    rounds: list[Round]
    decode_start: float

    def prepare(self, order: Any) -> None: ...

    def stop(self) -> None:
        """End the sample here, whatever happened, so that the draft stops too."""


@dataclass
class Conversation:
    """One sample, done: when it began and ended on the machine's clock, and the draft's report."""

    start: float
    end: float
    report: Any


class TwoProcessMethod(Method):
    """The target stays in this process; the draft is loaded and run in a worker."""

    needs = Needs(draft="worker")
    worker: Worker | None = None
    mailbox: Mailbox

    def start_worker(self, runtime: Runtime, program: Program, draft_cores: int) -> None:
        """Start the draft's process with cores of its own; `self.mailbox` is there already, and the program holds it too.

        Raises ConfigError without a draft, WorkerError if it fails.
        """
        pair = runtime.pair
        if pair.draft is None:
            raise ConfigError("pair.draft", None, f"{type(self).__name__.lower()} needs a draft model")
        self.placement, draft_placement = split(pair.target.device, pair.draft.device, draft_cores)
        self.number = 0
        try:
            assert runtime.load_draft is not None
            self.worker = Worker("draft", runtime.load_draft, program, draft_placement, runtime.timeout_seconds)
        finally:
            self.mailbox.unlink()  # both sides hold it now: nothing is left behind, whatever ends the run

    def converse(self, side: TargetSide, order: Order) -> Conversation:
        """Run one sample. Raises WorkerError when the draft's process is lost; after any other error the next may come."""
        assert self.worker is not None, "open first"
        side.prepare(order)
        self.worker.prepare(order)
        start = now()
        try:
            self.worker.go()
            drive(side, self.worker.check, self.runtime.timeout_seconds)
            end = now()
        except WorkerError:
            raise
        except PeerLost as error:
            self.worker.lost(str(error))
        except BaseException:
            with contextlib.suppress(PeerLost):
                side.stop()
            raise
        return Conversation(start, end, self.worker.result())

    def outcome(
        self, side: TargetSide, done: Conversation, rounds: list[Round], concurrent_seconds: dict[str, float]
    ) -> Outcome:
        """The sample's outcome; spans come out on the rounds' clock, without what lies outside the decoding."""
        zero, end = side.decode_start, done.end
        inside = [(a, b, what) for a, b, what in sorted(done.report.spans) if zero < b and a < end]
        return Outcome(
            output_ids=side.output,
            finish_reason=str(side.finish),
            prefill_seconds=zero - done.start,
            decode_seconds=end - zero,
            rounds=rounds,
            concurrent_seconds=concurrent_seconds,
            started_at=zero,
            spans=[(max(0.0, a - zero), min(b, end) - zero, what) for a, b, what in inside],
        )

    def memory_bytes(self) -> dict[str, int]:
        """The draft's parts are counted in its own process; a draft that no longer answers leaves them out."""
        if self.worker is None:
            return super().memory_bytes()
        parts = super().memory_bytes() | {"mailbox": self.mailbox.nbytes}
        with contextlib.suppress(WorkerError):
            parts |= {f"draft_{part}": size for part, size in self.worker.memory_bytes().items()}
        return parts

    def close(self) -> None:
        if self.worker is not None:
            self.worker.close()
            self.worker = None
