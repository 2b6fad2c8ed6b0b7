"""A model in a process of its own: start, feed with samples, supervise, stop.

The child loads its model from a small picklable specification and runs a *program*: an object with `open(model)`,
`prepare(order)` and `run()`, so that AMUSD's drafter, PEARL's and others share this file. Between samples the child sleeps at
its pipe and costs nothing. Death in either direction is noticed: the child has a lifeline that closes with its parent, the parent
looks at the child whenever it waits, and an error travels with its own text.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Protocol

from specbench.engine.placement import Placement
from specbench.pair import ModelSpec


class WorkerError(RuntimeError):
    """A worker died, hung or failed; the message is its own error text."""


class Program(Protocol):
    """What a worker does. Instances travel to the child by pickle, before the model exists."""

    def open(self, model: Any) -> None:
        """Once, in the child, with the loaded `specbench.engine.session.Model`."""

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
    """The parent's handle on one child process. Raises WorkerError from any call when the child is gone or failed."""

    def __init__(
        self,
        role: str,
        spec: ModelSpec,
        program: Program,
        placement: Placement,
        vocab_size: int | None,
        timeout_seconds: float,
        start_timeout_seconds: float = 600.0,
    ):
        self.role, self.timeout_seconds = role, timeout_seconds
        self._closed = False
        context = multiprocessing.get_context("spawn")
        self._pipe, child_pipe = context.Pipe()
        lifeline, self._lifeline = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_child_main,
            args=(child_pipe, lifeline, spec, program, placement, vocab_size),
            name=f"specbench-{role}",
            daemon=True,
        )
        self._process.start()
        child_pipe.close()
        lifeline.close()
        self._expect("ready", start_timeout_seconds)

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def prepare(self, order: Any) -> None:
        """Hand over a sample and wait until the child is ready for it."""
        self._send(("prepare", order))
        self._expect("prepared", self.timeout_seconds)

    def go(self) -> None:
        """Let the prepared sample run; returns at once."""
        self._send(("run", None))

    def result(self) -> Any:
        """Wait for the running sample's report."""
        return self._expect("result", self.timeout_seconds)

    def check(self) -> None:
        """Raise WorkerError if the child is dead or has reported a failure; cheap, called while waiting."""
        if self._pipe.poll(0):
            self._receive("running")
        if self._process.exitcode is not None:
            raise WorkerError(self._death())

    def _send(self, message: tuple[str, Any]) -> None:
        try:
            self._pipe.send(message)
        except (BrokenPipeError, OSError):
            self.check()
            raise WorkerError(self._death()) from None

    def _expect(self, word: str, timeout_seconds: float) -> Any:
        waited = 0.0
        while not self._pipe.poll(0.05 if waited else 0.0005):
            if self._process.exitcode is not None and not self._pipe.poll(0):
                raise WorkerError(self._death())
            waited += 0.05
            if waited > timeout_seconds:
                self.close()
                raise WorkerError(f"worker {self.role}: no answer ({word}) for {timeout_seconds:g} s; it hangs and was killed")
        return self._receive(word)

    def _receive(self, word: str) -> Any:
        try:
            kind, content = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(1.0)
            raise WorkerError(self._death()) from None
        if kind == "failure":
            raise WorkerError(f"worker {self.role}: {content.kind}: {content.message}\n{content.trace}")
        assert kind == word, f"worker {self.role} said {kind} where {word} was due"
        return content

    def _death(self) -> str:
        code = self._process.exitcode
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            hint = "; the system may have run out of memory" if -code == signal.SIGKILL else ""
            return f"worker {self.role} died of {name}{hint}"
        return f"worker {self.role} died with exit status {code}"

    def close(self) -> None:
        """Stop the child: politely, then by force. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(OSError):
            self._pipe.send(("close", None))
        self._lifeline.close()
        self._process.join(2.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(5.0)
        self._pipe.close()


def _child_main(
    pipe: Connection, lifeline: Connection, spec: ModelSpec, program: Program, placement: Placement, vocab_size: int | None
) -> None:
    # Ctrl-C reaches the whole process group; the parent decides what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, args=(lifeline,), daemon=True).start()
    try:
        placement.apply()
        from specbench.pair import load_model

        program.open(load_model(spec, vocab_size))
        pipe.send(("ready", None))
        while True:
            word, content = pipe.recv()
            if word == "prepare":
                program.prepare(content)
                pipe.send(("prepared", None))
            elif word == "run":
                pipe.send(("result", program.run()))
            else:
                return
    except EOFError:
        return
    except BaseException as error:  # its text must reach the user whatever it is, memory exhaustion included
        with contextlib.suppress(OSError):
            pipe.send(("failure", Failure(type(error).__name__, str(error), traceback.format_exc(limit=8))))
        os._exit(1)


def _die_with_parent(lifeline: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv()
    # Not while the polite way is still open: `close` sends its word first and then lets go of the lifeline.
    threading.Event().wait(1.0)
    os._exit(0)
