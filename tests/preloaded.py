"""Processes that begin with torch, transformers and specbench loaded: forked from a server that has imported them once.

For tests of what a process does; those of how one is started, and each worker of a process that is killed, spawn as users do.
Where tests of it are among those to be run, the server gets ready beside the ones that come first (conftest.py).
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["worker_programs", "specbench.run.run", "transformers.models.llama.modeling_llama"])


def fork_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever would be spawned is forked from the server."""
    real = multiprocessing.get_context
    monkeypatch.setattr(multiprocessing, "get_context", lambda method=None: real("forkserver" if method == "spawn" else method))


class Started:
    """A function in a process and a process group of its own, its output in files, Ctrl-C as in a terminal."""

    def __init__(self, folder: Path, function: Callable[..., Any], *arguments: Any, cwd: Path | None = None):
        folder.mkdir(parents=True, exist_ok=True)
        self._files = [folder / name for name in ("stdout", "stderr")]
        for file in self._files:
            file.touch()
        where = str(cwd or Path.cwd())
        self.process: BaseProcess = CONTEXT.Process(target=_begin, args=(self._files, where, function, arguments))
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid

    @property
    def out(self) -> str:
        return self._files[0].read_text()

    @property
    def err(self) -> str:
        return self._files[1].read_text()

    def ended(self, seconds: float) -> int | None:
        """The exit status, negative for a signal; None if it lives on after so many seconds."""
        self.process.join(seconds)
        return self.process.exitcode

    def kill(self) -> None:
        """It and its group, if they are still there."""
        if self.process.exitcode is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.process.join(30)


def command(arguments: Sequence[str]) -> None:
    """What `python -m specbench` does with these arguments."""
    from specbench.front.cli import main

    sys.argv = ["specbench", *arguments]
    sys.exit(main())


def module(name: str, arguments: Sequence[str]) -> None:
    """What `python -m <name>` does with these arguments."""
    sys.argv = [name, *arguments]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def _begin(files: Sequence[Path], cwd: str, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    os.setsid()
    for descriptor, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), descriptor)
    os.chdir(cwd)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    function(*arguments)
