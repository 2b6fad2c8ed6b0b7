"""A worker in a thread of this process, for tests of what a method says and not of how processes live and die.

Starting a process costs seconds; the mailbox, the programs and the messages are the same.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from typing import Any, NoReturn

import pytest

import specbench.processes.worker as worker_module
from specbench.processes.program import ProgramError, WorkerError
from specbench.processes.worker import Worker


class ThreadWorker:
    """`engine.worker.Worker`'s interface; the model is loaded here, the program runs in a thread."""

    pid = None

    def __init__(self, role: str, load: Any, program: Any, placement: Any, timeout_seconds: float, **_: Any):
        self.role, self.program, self.timeout_seconds = role, program, timeout_seconds
        self.thread: threading.Thread | None = None
        self.answer: tuple[Any, BaseException | None] = (None, None)
        program.open(load())

    def prepare(self, order: Any) -> None:
        if self.thread is not None:
            with contextlib.suppress(ProgramError):
                self.result()
        self.answer = (None, None)
        self.program.prepare(order)

    def go(self) -> None:
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.answer = (self.program.run(), None)
        except BaseException as error:
            self.answer = (None, error)

    def result(self) -> Any:
        assert self.thread is not None, "go first"
        self.thread.join(self.timeout_seconds)
        assert not self.thread.is_alive(), f"worker {self.role} hangs"
        self.thread = None
        self.check()
        return self.answer[0]

    def memory_bytes(self) -> dict[str, int]:
        return {}  # one process: nothing is anybody's alone

    def check(self) -> None:
        error = self.answer[1]
        if error is not None:
            raise ProgramError(f"worker {self.role}: {type(error).__name__}: {error}") from error

    def lost(self, why: str) -> NoReturn:
        raise WorkerError(why)

    def close(self) -> None:
        self.program = None


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put it wherever an imported module of the methods names the real one."""
    monkeypatch.setattr(worker_module, "Worker", ThreadWorker)
    for module in list(sys.modules.values()):
        if getattr(module, "Worker", None) is Worker and module.__name__.startswith("specbench."):
            monkeypatch.setattr(module, "Worker", ThreadWorker)
