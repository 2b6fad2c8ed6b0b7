"""Sweeps in tests: the command in this process with a quick run behind it, and real ones as processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_records import paired_run
from run_folders import BUILTIN

from specbench.config.schema import RunConfig
from specbench.front import cli
from specbench.measure.records import provenance
from specbench.measure.records.store import read_rounds, read_samples
from specbench.measure.summary import build_summary
from specbench.run import resume

NUM_PROMPTS = 3
TURNS = {f"s/{number}": [0] for number in range(NUM_PROMPTS)}

# Options of a real run that is over in seconds.
TINY = (
    *BUILTIN, "data.source=standin", "data.limit=2", "decoding.max_new_tokens=8", "measure.repeats=1", "measure.warmup=1",
    "measure.power=off", "engine.threads=1",
)  # fmt: skip


class QuickRun:
    """Stands for `run.run.run`: the same run folder, from synthetic records. fails: what to raise for a configuration."""

    def __init__(self) -> None:
        self.configs: list[RunConfig] = []
        self.fails: Callable[[RunConfig], BaseException | None] = lambda config: None

    def __call__(self, config: RunConfig, on_open: Callable[[Path], None] | None = None) -> dict[str, Any]:
        done = resume.finished(config)
        if done is not None:
            return done
        self.configs.append(config)
        error = self.fails(config)
        if error is not None and "early" in str(error):
            raise error
        facts = {"pair": {}, "data": {}, "warnings": [], "provenance": provenance.collect()}
        names = (config.method_name, config.baseline_name, config.data.name)
        with resume.open_run(config, names, facts, TURNS) as opened:
            store = opened.store
            samples, rounds = paired_run(NUM_PROMPTS, 1)
            for record in samples:
                if record.key not in opened.finished:
                    store.append(record, rounds[record.key])
                if error is not None:
                    if isinstance(error, Exception):
                        store.set_status("failed", error=f"{type(error).__name__}: {error}")
                    raise error
            store.set_status("success")
            run = {**store.run, "run_folder": str(store.folder)}
            summary = build_summary(run, read_samples(store.folder), read_rounds(store.folder), resamples=50)
            store.write_summary(summary)
        return summary


class Command:
    """`python -m specbench <arguments>` in this process, runs below `runs`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], runs: Path):
        self.monkeypatch, self.capsys, self.runs, self.run = monkeypatch, capsys, runs, QuickRun()
        monkeypatch.setitem(sys.modules, "specbench.run.run", types.SimpleNamespace(run=self.run))
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def __call__(self, *arguments: str) -> tuple[int, dict[str, Any] | None, str]:
        """(exit status, the JSON document at the end of stdout, stderr)."""
        self.monkeypatch.setattr(sys, "argv", ["specbench", *arguments, f"runs_dir={self.runs}"])
        status = cli.main()
        out, err = self.capsys.readouterr()
        lines = out.splitlines()
        return status, json.loads(lines[-1]) if lines else None, err


def command_line(runs: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "specbench", *arguments, *TINY, f"runs_dir={runs}"]


def environment(runs: Path) -> dict[str, str]:
    """Locks of its own: no test waits for another one's run."""
    return {**os.environ, "SPECBENCH_LOCKS": str(runs.parent / "locks")}


def execute(runs: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = command_line(runs, *arguments)
    return subprocess.run(line, env=environment(runs), capture_output=True, text=True, timeout=900)
