"""A model in a process of its own: start, feed with samples, supervise, stop.

The child loads its model by a small picklable call and runs a *program*: an object with `open(model)`,
`prepare(order)` and `run()`, so that AMUSD's drafter, PEARL's and others share this file. Between samples the child sleeps at
its pipe and costs nothing. Death in either direction is noticed: the child has a lifeline that closes with its parent, the
parent looks at the child whenever it waits, and an error travels with its own text.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NoReturn, Protocol

from specbench.measure.sensors.clock import memory_peak_bytes, now
from specbench.measure.sensors.memory import process_peak_rss_bytes, process_rss_bytes
from specbench.processes.child import death, end_with_parent, stop, without_interrupts
from specbench.processes.placement import Placement


class WorkerError(RuntimeError):
    """A worker died, hung or failed; the message is its own error text."""


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
    """An exception of the child, as text."""

    kind: str
    message: str
    trace: str


class Worker:
    """The parent's handle on one child process. Raises WorkerError from any call when the child is gone or failed.

    load: makes the model, in the child; picklable.
    timeout_seconds: how long the child may be silent when an answer is due; it then counts as hung and is killed.
    """

    def __init__(
        self,
        role: str,
        load: Callable[[], Any],
        program: Program,
        placement: Placement,
        timeout_seconds: float,
        start_timeout_seconds: float = 600.0,
    ):
        self.role, self.timeout_seconds = role, timeout_seconds
        self._closed = False
        self._owed: list[str] = ["ready"]  # answers that the child has yet to give, in order
        context = multiprocessing.get_context("spawn")
        self._pipe, child_pipe = context.Pipe()
        lifeline, self._lifeline = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_child_main,
            args=(child_pipe, lifeline, load, program, placement),
            name=f"specbench-{role}",
            daemon=True,
        )
        try:
            with without_interrupts():
                self._process.start()
            child_pipe.close()
            lifeline.close()
            self._answer(start_timeout_seconds)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def prepare(self, order: Any) -> None:
        """Hand over a sample and wait until the child is ready for it."""
        while self._owed:  # to a sample that failed or was interrupted elsewhere
            self._answer(self.timeout_seconds)
        self._send("prepare", order, "prepared")
        self._answer(self.timeout_seconds)

    def go(self) -> None:
        """Let the prepared sample run; returns at once."""
        self._send("run", None, "result")

    def result(self) -> Any:
        """Wait for the running sample's report."""
        assert self._owed == ["result"], "prepare and go first"
        return self._answer(self.timeout_seconds)

    def memory_bytes(self) -> dict[str, int]:
        """What the child's process holds, by part (see `held_bytes`); asked between samples."""
        while self._owed:
            self._answer(self.timeout_seconds)
        self._send("memory", None, "memory")
        held: dict[str, int] = self._answer(self.timeout_seconds)
        return held

    def check(self) -> None:
        """Raise WorkerError if the child is dead or has reported a failure; cheap, called while waiting for its messages."""
        if self._closed:
            raise WorkerError(f"worker {self.role} was stopped")
        if self._pipe.poll(0):
            word = self._receive()[0]
            self._give_up(f"is out of step: it said {word} while the sample runs")
        if self._process.exitcode is not None:
            raise WorkerError(self._death())

    def lost(self, why: str) -> NoReturn:
        """Raise WorkerError for a child that no longer takes part: its own error if it has one, else it hangs and is killed."""
        with contextlib.suppress(OSError):
            self.check()
        self._give_up(f"hangs and was killed: {why}")

    def _give_up(self, what: str) -> NoReturn:
        self.close()
        raise WorkerError(f"worker {self.role} {what}")

    def _send(self, word: str, content: Any, answer: str) -> None:
        self._owed.append(answer)
        try:
            self._pipe.send((word, content))
        except OSError:
            self.check()
            self._process.join(1.0)
            raise WorkerError(self._death()) from None

    def _answer(self, timeout_seconds: float) -> Any:
        """Wait for the next answer that is due."""
        if self._closed:
            raise WorkerError(f"worker {self.role} was stopped")
        word, deadline = self._owed[0], now() + timeout_seconds
        while not self._pipe.poll(0.05):
            if self._process.exitcode is not None and not self._pipe.poll(0):
                raise WorkerError(self._death())
            if now() > deadline:
                self._give_up(f"hangs and was killed: no answer ({word}) for {timeout_seconds:g} s (engine.timeout_seconds)")
        kind, content = self._receive()
        if kind != word:
            self._give_up(f"is out of step: it said {kind} where {word} was due")
        del self._owed[0]
        return content

    def _receive(self) -> tuple[str, Any]:
        try:
            kind, content = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(1.0)
            raise WorkerError(self._death()) from None
        if kind == "failure":
            error = WorkerError(f"worker {self.role}: {content.kind}: {content.message}")
            error.add_note(f"In the worker's process:\n{content.trace}")
            raise error
        return kind, content

    def _death(self) -> str:
        code = self._process.exitcode
        return f"worker {self.role} {'closed its pipe' if code is None else death(code)}"

    def _ended(self, seconds: float) -> bool:
        self._process.join(seconds)
        return not self._process.is_alive()

    def close(self) -> None:
        """Stop the child: politely if it is listening, else by force. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(OSError):
            self._pipe.send(("close", None))
        self._lifeline.close()
        if self._process.pid is not None:
            stop(self._ended, (0.1 if self._owed else 2.0, self._process.kill))
        self._pipe.close()


def held_bytes(model: Any, program: Program) -> dict[str, int]:
    """Bytes of this process by part: weights, kv (of the program's `session`), device_peak (CUDA), process_rss and its peak."""
    cache = getattr(getattr(program, "session", None), "cache", None)
    parts = {
        "weights": sum(p.numel() * p.element_size() for p in model.module.parameters()),
        "kv": None if cache is None else cache.nbytes,
        "device_peak": memory_peak_bytes(str(model.device)),
        "process_rss": process_rss_bytes(),
        "process_peak_rss": process_peak_rss_bytes(),
    }
    return {part: size for part, size in parts.items() if size is not None}


def _child_main(
    pipe: Connection, lifeline: Connection, load: Callable[[], Any], program: Program, placement: Placement
) -> None:
    # Ctrl-C reaches the whole process group; the parent decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Not while the polite way is still open: `close` sends its word first and then lets go of the lifeline.
    end_with_parent(lifeline.fileno(), grace_seconds=1.0)
    try:
        placement.apply()
        model = load()
        program.open(model)
        gc.collect()
        gc.freeze()  # what is loaded now lives to the end: the collector need not look at it inside timed loops
        pipe.send(("ready", None))
        while True:
            word, content = pipe.recv()
            if word == "prepare":
                if hasattr(content, "request"):  # a sample, and not another order of a method's own
                    model.expect(content.request)
                program.prepare(content)
                pipe.send(("prepared", None))
            elif word == "run":
                pipe.send(("result", program.run()))
            elif word == "memory":
                pipe.send(("memory", held_bytes(model, program)))
            else:
                return
    except EOFError:
        return
    except BaseException as error:  # its text must reach the user whatever it is, memory exhaustion included
        with contextlib.suppress(OSError):
            pipe.send(("failure", Failure(type(error).__name__, str(error), traceback.format_exc(limit=8))))
        os._exit(1)
