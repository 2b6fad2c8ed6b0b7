"""What runs in a worker's process: a program on a model, one sample after the other.

An error while it starts ends the process, with its text; one in a sample is that sample's, and the next may come.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Protocol

from specbench.measure.sensors.clock import making_seconds, memory_peak_bytes
from specbench.measure.sensors.memory import process_peak_rss_bytes, process_rss_bytes
from specbench.processes.child import Lifeline
from specbench.processes.placement import Placement


class WorkerError(RuntimeError):
    """A worker died, hung or failed; the message is its own error text."""


class ProgramError(RuntimeError):
    """A worker's program raised in a sample; the message is its own error text. The worker lives on and takes the next."""


class Program(Protocol):
    """What a worker does. Instances travel to the child by pickle, before the model exists."""

    def open(self, model: Any) -> None:
        """Once, in the child, with the loaded `specbench.engine.model.Model`."""

    def prepare(self, order: Any) -> None:
        """A new sample: ids onto the device, buffers reserved. The clock has not started."""

    def run(self) -> Any:
        """The sample itself, from its first mailbox message to its last; returns what is reported (picklable)."""


@dataclass(frozen=True)
class Failure:
    """An exception of the child, as text. ends: whether the child ends with it."""

    kind: str
    message: str
    trace: str
    ends: bool

    @classmethod
    def of(cls, error: BaseException, ends: bool) -> Failure:
        return cls(type(error).__name__, str(error), traceback.format_exc(limit=-8), ends)

    def error(self, role: str) -> RuntimeError:
        kind = WorkerError if self.ends else ProgramError
        error = kind(f"worker {role}: {self.kind}: {self.message}")
        error.add_note(f"In the worker's process:\n{self.trace}")
        return error


def held_bytes(model: Any, program: Program) -> dict[str, int]:
    """Bytes of this process by part: weights; of the program's `session` kv and what a backend's programs hold; device_peak
    (CUDA), process_rss and its peak."""
    session = getattr(program, "session", None)
    cache = getattr(session, "cache", None)
    parts = {
        "weights": sum(p.numel() * p.element_size() for p in model.module.parameters()),
        "kv": None if cache is None else cache.nbytes,
        **getattr(session, "program_bytes", {}),
        "device_peak": memory_peak_bytes(str(model.device)),
        "process_rss": process_rss_bytes(),
        "process_peak_rss": process_peak_rss_bytes(),
    }
    return {part: size for part, size in parts.items() if size is not None}


def serve(lifeline: Lifeline, pipe: Connection, load: Callable[[], Any], program: Program, placement: Placement) -> None:
    """The life of a worker's process: load, open, and one sample after the other until the word is to close.

    lifeline: has been held since it was unpickled; first, since what is unpickled behind it imports torch.
    """
    # Ctrl-C reaches the whole process group; the parent decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        placement.apply()
        pipe.send(("stage", "loading its model"))
        model = load()
        pipe.send(("stage", "opening its program"))
        program.open(model)
        gc.collect()
        gc.freeze()  # what is loaded now lives to the end: the collector need not look at it inside timed loops
        pipe.send(("ready", None))
        while True:
            word, content = pipe.recv()
            if word == "close":
                return
            pipe.send(_done(word, content, model, program))
    except EOFError:
        return
    except BaseException as error:  # its text must reach the user whatever it is, memory exhaustion included
        with contextlib.suppress(OSError):
            pipe.send(("failure", Failure.of(error, ends=True)))
        os._exit(1)


def _done(word: str, content: Any, model: Any, program: Program) -> tuple[str, Any]:
    """The answer to an order; what a sample raises is one too, but for memory that ran out."""
    try:
        if word == "prepare":
            if hasattr(content, "request"):  # a sample, and not another order of a method's own
                model.expect(content.request)
            before = making_seconds()
            program.prepare(content)
            return "prepared", making_seconds() - before
        if word == "run":
            return "result", program.run()
        return "memory", held_bytes(model, program)
    except MemoryError:
        raise
    except Exception as error:
        return "failure", Failure.of(error, ends=False)
