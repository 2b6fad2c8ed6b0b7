"""Ordinary runs, each by the command that a user would type, and what their folders say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specbench.measure.records.store import find_run_folders, read_run, read_summary
from specbench.processes.child import run_module
from specbench.qualify.plan import Task

LEAST_SECONDS = 30.0  # less is not worth a start
AMPLE_SECONDS = 150.0  # a run that is not through after so long hangs; after less, it had no time


@dataclass(frozen=True)
class Done:
    """command: to type for the same. summary: of the run's folder, None where it did not end. why: what it said instead."""

    command: str
    summary: dict[str, Any] | None
    why: str | None = None

    @property
    def reached(self) -> bool:
        """Whether there was time for it."""
        return self.why is None or not self.why.startswith("not run")

    @property
    def identical(self) -> bool:
        return self.summary is not None and self.summary["lossless"]["verdict"] in ("identical", "numerical tie")


def run_specbench(
    task: Task, name: str, overrides: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None
) -> Done:
    """`python -m specbench ...` with its folder below <out>/runs/<name>; ended after `seconds`, worker and all."""
    command = "python -m specbench " + " ".join(overrides)
    if seconds < LEAST_SECONDS:
        return Done(command, None, f"not run: {max(0.0, seconds):.0f} s were left")
    home = task.out / "runs" / name
    # The same front door, for a process that ends with the one that started it.
    arguments = ["specbench.front.isolated", *overrides, f"runs_dir={home}", "device_lock=off"]
    log = task.out / "runs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as said:
        status = run_module(arguments, environment=environment, output=said, timeout_seconds=seconds)
    folders = [folder for folder in find_run_folders(home) if read_run(folder).get("status") == "success"]
    if status == 0 and folders:
        return Done(command, read_summary(folders[-1]))
    if status is None and seconds < AMPLE_SECONDS:
        return Done(command, None, f"not run: not through within the {seconds:.0f} s that were left")
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    ended = f"ended after {seconds:.0f} s" if status is None else f"status {status}"
    return Done(command, None, f"{ended}: {lines[-1][:300] if lines else 'it said nothing'}")


def on_device(task: Task) -> list[str]:
    """Both models of the pair on the device."""
    return [f"pair.target_device={task.device}", f"pair.draft_device={task.device}"]


def speedup_row(label: str, done: Done) -> tuple[Any, ...]:
    """One line of `SPEEDUP_COLUMNS`."""
    if done.summary is None:
        return (label, None, None, None, None, None, done.why)
    s = done.summary
    low_high = s["speedup"]["ci95"] or (None, None)
    interval = "-" if low_high[0] is None else f"{s['speedup']['ratio_of_totals']:.3f} [{low_high[0]:.3f}, {low_high[1]:.3f}]"
    rates = (s["decode_tokens_per_second"], s["baseline_decode_tokens_per_second"])
    return (label, interval, *rates, s["emitted_per_round"], s["acceptance_rate"], s["lossless"]["verdict"])


SPEEDUP_COLUMNS = ("method", "speed-up over AR, 95 %", "tokens/s", "AR tokens/s", "emitted per round", "acceptance", "outputs")
