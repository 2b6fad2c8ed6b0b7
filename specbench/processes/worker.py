"""A model in a process of its own: start, feed with samples, supervise, stop.

The child loads its model by a small picklable call and runs a *program* (`processes.program`): an object with `open(model)`,
`prepare(order)` and `run()`, so that AMUSD's drafter, PEARL's and others share this file. Between samples the child sleeps at
its pipe and costs nothing. Death in either direction is noticed: the child has a lifeline that closes with its parent, the
parent looks at the child whenever it waits, and an error travels with its own text. So is silence, wherever it begins: a child
that is stopped or hangs is killed after `timeout_seconds`, and the error says what it was doing. While it starts or prepares a
sample, no word can be due (loading takes as long as the model is large, and a backend may compile): there a child is silent
when it shows no `signs_of_life`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import struct
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from specbench.measure.sensors.clock import made_for
from specbench.processes.child import Lifeline, death, stop
from specbench.processes.interrupts import without_interrupts
from specbench.processes.placement import Placement
from specbench.processes.program import Program, ProgramError, WorkerError, serve
from specbench.processes.silence import Silence, signs_of_life

START_SECONDS = 600.0  # for a child that shows signs of life all the time and does not come to an end
# What a child does while an answer is due, for the error if none comes.
_STAGES = {"prepared": "preparing a sample", "result": "decoding a sample", "memory": "counting its memory"}


class Worker:
    """The parent's handle on one child process.

    Raises WorkerError from any call when the child is gone or failed; ProgramError where a sample did and the next may come.

    load: makes the model, in the child; picklable.
    timeout_seconds: how long the child may be silent; it then counts as hung and is killed.
    """

    def __init__(
        self,
        role: str,
        load: Callable[[], Any],
        program: Program,
        placement: Placement,
        timeout_seconds: float,
    ):
        self.role, self.timeout_seconds = role, timeout_seconds
        self.stage = "starting its process"
        self._closed = False
        self._owed: list[str] = ["ready"]  # answers that the child has yet to give, in order
        context = multiprocessing.get_context("spawn")
        self._pipe, child_pipe = context.Pipe()
        _limit_waiting(self._pipe, timeout_seconds)
        lifeline, self._lifeline = context.Pipe(duplex=False)
        self._process = context.Process(
            target=serve,
            # Some grace, since `close` sends its word first and then lets go of the lifeline.
            args=(Lifeline(lifeline, grace_seconds=1.0), child_pipe, load, program, placement),
            name=f"specbench-{role}",
            daemon=True,
        )
        try:
            with without_interrupts():
                self._process.start()
            child_pipe.close()
            lifeline.close()
            self._answer()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int | None:
        return self._process.pid

    def prepare(self, order: Any) -> None:
        """Hand over a sample and wait until the child is ready for it."""
        self._settle()
        self._send("prepare", order, "prepared")
        made_for(self._answer())

    def go(self) -> None:
        """Let the prepared sample run; returns at once."""
        self._send("run", None, "result")

    def result(self) -> Any:
        """Wait for the running sample's report."""
        assert self._owed == ["result"], "prepare and go first"
        return self._answer()

    def memory_bytes(self) -> dict[str, int]:
        """What the child's process holds, by part (see `held_bytes`); asked between samples."""
        self._settle()
        self._send("memory", None, "memory")
        held: dict[str, int] = self._answer()
        return held

    def _settle(self) -> None:
        """Take the answers that are due to a sample that failed or was interrupted elsewhere: they are nobody's any more."""
        while self._owed:
            with contextlib.suppress(ProgramError):
                self._answer()

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
        self._hangs(why)

    def _hangs(self, why: str) -> NoReturn:
        self._give_up(f"hangs and was killed while {self.stage}: {why}")

    def _give_up(self, what: str) -> NoReturn:
        self.close()
        raise WorkerError(f"worker {self.role} {what}")

    def _send(self, word: str, content: Any, answer: str) -> None:
        self._owed.append(answer)
        self.stage = _STAGES[answer]
        try:
            self._pipe.send((word, content))
        except BlockingIOError:
            self._hangs(f"it took nothing for {self.timeout_seconds:g} s (engine.timeout_seconds)")
        except OSError:
            self.check()
            self._process.join(1.0)
            raise WorkerError(self._death()) from None

    def _answer(self) -> Any:
        """Wait for the next answer that is due."""
        if self._closed:
            raise WorkerError(f"worker {self.role} was stopped")
        word, kind = self._owed[0], ""
        start = Silence(START_SECONDS) if word in ("ready", "prepared") else None
        while kind != word:
            self._listen(start)
            kind, content = self._receive()
            if kind == "stage" and word == "ready":
                self.stage = content
            elif kind != word:
                self._give_up(f"is out of step: it said {kind} where {word} was due")
        del self._owed[0]
        return content

    def _listen(self, start: Silence | None) -> None:
        """Until the child says something. Raises WorkerError when it is dead, silent for too long, or never ready."""
        silence, life = Silence(self.timeout_seconds), ""
        while not self._pipe.poll(0.05):
            if self._process.exitcode is not None and not self._pipe.poll(0):
                raise WorkerError(self._death())
            if start is not None:
                before, life = life, signs_of_life(self.pid) or ""
                if life != before or not life:
                    silence.broken()
                if start.too_long():
                    self._hangs(f"it was not ready after {START_SECONDS:g} s")
            if silence.too_long():
                what = "answer" if start is None else "sign of life"
                self._hangs(f"no {what} for {self.timeout_seconds:g} s (engine.timeout_seconds)")

    def _receive(self) -> tuple[str, Any]:
        try:
            kind, content = self._pipe.recv()
        except BlockingIOError:
            self._hangs(f"half an answer for {self.timeout_seconds:g} s (engine.timeout_seconds)")
        except (EOFError, OSError):
            self._process.join(1.0)
            raise WorkerError(self._death()) from None
        if kind == "failure":
            if not content.ends:
                del self._owed[0]
            raise content.error(self.role)
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
        if not self._owed:
            with contextlib.suppress(OSError):
                self._pipe.send(("close", None))
        self._lifeline.close()
        if self._process.pid is not None:
            stop(self._ended, (0.1 if self._owed else 2.0, self._process.kill))
        self._pipe.close()


def _limit_waiting(pipe: Connection, seconds: float) -> None:
    """From now on reading and writing at this end raise BlockingIOError after so long without a byte (or about eleven days).

    The other process may be stopped in the middle of a message, and a long one fills what the system keeps for it.
    """
    limit = struct.pack("ll", *divmod(round(1e6 * min(seconds, 1e6)) or 1, 1_000_000))
    with socket.socket(fileno=os.dup(pipe.fileno())) as end:
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            end.setsockopt(socket.SOL_SOCKET, option, limit)
