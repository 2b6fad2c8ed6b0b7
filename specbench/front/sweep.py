"""A sweep: its jobs, which of them are finished, its record and its table.

The truth about a job is its run folder, <runs_dir>/sweeps/<name>/<method>_<data>_<8 hex of its configuration's hash>: the same
command started again finds what is finished there and what is to be continued. sweep_<hash>.json beside them records what was
asked for and how each job ended.
"""

from __future__ import annotations

import hashlib
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from specbench.config.options import ConfigError
from specbench.config.say import counted, say
from specbench.config.schema import RunConfig, as_dict
from specbench.measure.records import provenance
from specbench.measure.records import store as files
from specbench.measure.records.conditions import differences
from specbench.measure.records.jsonfile import dumps, write_atomically
from specbench.measure.records.masking import mask_argv, mask_text
from specbench.measure.records.store import RunStore, StoreError
from specbench.run.resume import check_config

FORMAT_VERSION = 1
FINE = ("success", "left out")  # jobs that leave a sweep a success


class JobFailed(RuntimeError):
    """A job of a sweep ended with an error; the message is the one line that a single run would have said."""


@dataclass
class Job:
    """One run of a sweep. overrides: the options that make it, in Hydra's notation."""

    overrides: list[str]
    config: RunConfig
    folder: Path
    kept: bool = False  # finished before this start of the sweep
    changed: list[str] = field(default_factory=list)  # conditions that differ from now (allow_mixed)
    error: str | None = None
    unfit: str | None = None  # what the pair lacks for it: it is left out

    @property
    def line(self) -> list[str]:
        """The options of a run that does this job and nothing else, in its own folder, continued if it is there."""
        return [*self.overrides, f"run_folder={quoted(str(self.folder))}"]

    def run(self) -> dict[str, Any]:
        """run.json, empty before there is one."""
        return files.read_run(self.folder) if files.is_run_folder(self.folder) else {}

    @property
    def status(self) -> str:
        if self.error is not None:
            return "failed"
        if self.unfit is not None:
            return "left out"
        return str(self.run().get("status", "not started"))

    def summary(self) -> dict[str, Any] | None:
        try:
            return files.read_summary(self.folder)
        except StoreError:
            return None

    def is_finished(self) -> bool:
        return self.run().get("status") == "success" and self.summary() is not None

    def settle(self, error: str | None) -> None:
        """After its end: a job that ended with an error, or died without a word, is recorded as failed with its error."""
        run = self.run()
        if run.get("status") == "success" and error is None:
            return
        told = error or run.get("error") or f"the run ended with status {run.get('status', 'not started')}"
        self.error = mask_text(told)
        if run and run.get("status") != "failed":
            RunStore(self.folder, run).set_status("failed", error=self.error)

    def as_dict(self) -> dict[str, Any]:
        summary = self.summary() or {}
        speedup = summary.get("speedup") or {}
        return {
            "folder": str(self.folder),
            "overrides": mask_argv(self.overrides),
            "method": self.config.method_name,
            "baseline": self.config.baseline_name,
            "data": self.config.data.name,
            "status": self.status,
            "finished_before": self.kept,
            "changed": self.changed,
            "speedup": speedup.get("ratio_of_totals"),
            "ci95": speedup.get("ci95"),
            "error": self.error,
            "left_out": self.unfit,
        }


@dataclass
class Sweep:
    """All jobs of a sweep. num_requested: combinations asked for; jobs of equal configuration are one."""

    name: str
    jobs: list[Job]
    num_requested: int
    folder: Path
    hash: str
    experiment: str | None = None
    status: str = "started"
    started_at: str = ""
    report: Path | None = None  # of an experiment, when it has ended

    @classmethod
    def plan(cls, combinations: Sequence[tuple[list[str], RunConfig]], experiment: str | None, axes: Iterable[str]) -> Sweep:
        """combinations: options and configuration of each. axes: the options that vary, for the name if none is given."""
        assert combinations
        first = combinations[0][1]
        for key in ("resume", "run_folder"):
            if getattr(first, key) is not None:
                remedy = "a sweep has its own folders; started again with the same options, it goes on by itself"
                raise ConfigError(key, getattr(first, key), remedy)
        different: dict[str, tuple[list[str], RunConfig]] = {}
        for overrides, config in combinations:
            different.setdefault(files.config_hash(as_dict(config)), (overrides, config))
        digest = hashlib.sha256("".join(sorted(different)).encode()).hexdigest()[:8]
        chosen = first.sweep.name or experiment or f"{slug('-'.join(axes))[:60] or 'jobs'}_{digest}"
        folder = Path(first.runs_dir) / "sweeps" / chosen
        jobs = [
            Job(overrides, config, folder / f"{slug(config.method_name)}_{slug(config.data.name)}_{key[:8]}")
            for key, (overrides, config) in different.items()
        ]
        return cls(chosen, jobs, len(combinations), folder, digest, experiment, started_at=_now())

    def varying(self, job: Job, but: str | None = None) -> str:
        """The options of a job that not all jobs share: what tells it from the others. but: not those that begin so."""
        own = [o for o in job.overrides if but is None or not o.startswith(but)]
        shown = mask_argv([o for o in own if not all(o in other.overrides for other in self.jobs)])
        return " ".join(shown) or f"{job.config.method_name} on {job.config.data.name}"

    def look(self) -> None:
        """See what is there. Raises ConfigError if finished work was done under other conditions and that is not allowed."""
        conditions: dict[str, Any] | None = None
        for job in self.jobs:
            run = job.run()
            if not run:
                continue
            check_config(job.config, run, job.folder)
            if "provenance" in run:
                conditions = conditions or provenance.collect()
                job.changed = differences(conditions, run["provenance"])
            if job.changed and not job.config.allow_mixed:
                raise ConfigError(
                    "allow_mixed",
                    False,
                    f"conditions changed since {job.folder} was started: {'; '.join(job.changed)}; sweep.name=<new> measures "
                    "all jobs again, allow_mixed=true keeps what is there and says so",
                )
            job.kept = job.is_finished()

    def leave_out(self) -> None:
        """Of the jobs that are to do, mark those whose needs the pair does not meet, where sweep.skip_unfit asks for that.

        Raises ConfigError if that leaves no job at all.
        """
        from specbench.run.prepare import why_unfit  # which imports torch

        found: dict[str, str | None] = {}
        for job in self.left():
            if job.config.sweep.skip_unfit:
                options = as_dict(job.config)
                asked = dumps([options[key] for key in ("pair", "engine", "method", "baseline", "measure")])
                if asked not in found:
                    found[asked] = why_unfit(job.config)
                job.unfit = found[asked]
        if all(job.unfit is not None for job in self.jobs):
            raise ConfigError("sweep.skip_unfit", True, f"leaves nothing to run: {self.jobs[0].unfit}")

    def left_out(self) -> list[dict[str, Any]]:
        """What was left out, whatever its data set, and why."""
        counted = Counter((self.varying(job, but="data="), job.unfit) for job in self.jobs if job.unfit is not None)
        return [{"what": what, "why": why, "num_jobs": number} for (what, why), number in counted.items()]

    def left(self) -> list[Job]:
        return [job for job in self.jobs if not job.kept and job.unfit is None]

    def end(self) -> None:
        self.status = "failed" if any(job.status not in FINE for job in self.jobs) else "success"
        self.write()

    def write(self) -> None:
        ended = {} if self.status == "started" else {"ended_at": _now()}
        record = {**self.as_dict(), "argv": mask_argv(sys.argv), "started_at": self.started_at, **ended}
        write_atomically(self.folder / f"sweep_{self.hash}.json", dumps(record, indent=1) + "\n")

    def as_dict(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "sweep": self.name,
            "sweep_folder": str(self.folder),
            "experiment": self.experiment,
            "report": None if self.report is None else str(self.report),
            "status": self.status,
            "num_requested": self.num_requested,
            "num_jobs": len(self.jobs),
            "num_finished_before": sum(job.kept for job in self.jobs),
            "num_failed": sum(job.error is not None for job in self.jobs),
            "left_out": self.left_out(),
            "jobs": [job.as_dict() for job in self.jobs],
        }


class SweepProgress:
    """One line before and one after each job, over all jobs of the sweep, on stderr."""

    def __init__(self, sweep: Sweep):
        self.sweep, self.started = sweep, time.monotonic()
        left_out = sum(job.unfit is not None for job in sweep.jobs)
        self.total = len(sweep.jobs) - left_out
        self.done = self.total - len(sweep.left())
        self.first = self.done
        same = sweep.num_requested - len(sweep.jobs)
        parts = [counted(self.total, "job")]
        parts += [f"{counted(same, 'combination')} like another, run once"] if same else []
        parts += [f"{self.done} finished before"] if self.done else []
        parts += [f"{left_out} left out"] if left_out else []
        say(f"sweep {sweep.name}: {', '.join(parts)}; {sweep.folder}")
        for item in sweep.left_out():
            say(f"left out: {item['what']}{f' ({n} jobs)' if (n := item['num_jobs']) > 1 else ''}: {item['why']}")

    def before(self, job: Job) -> None:
        say(f"[{self.done + 1}/{self.total}] {self.sweep.varying(job)}")

    def after(self, job: Job) -> None:
        self.done += 1
        left = self.total - self.done
        took = (time.monotonic() - self.started) / (self.done - self.first)
        rest = f"; {left} to go, about {_duration(took * left)}" if left else ""
        failed = sum(other.error is not None for other in self.sweep.jobs)
        bad = f"; {failed} failed so far" if failed else ""
        say(f"[{self.done}/{self.total}] {outcome(job)}{rest}{bad}")
        self.sweep.write()


def outcome(job: Job) -> str:
    """How a job ended, in a few words."""
    if job.error is not None:
        return f"failed: {job.error}"
    summary = job.summary() or {}
    speedup = summary.get("speedup")
    if not speedup:
        return job.status
    unclear = "" if speedup.get("distinguishable", True) else ", not distinguishable"
    return f"{job.status}, {speedup['ratio_of_totals']:.3f}x ({interval_text(speedup['ci95'])}{unclear})"


def quoted(text: str) -> str:
    """A value in Hydra's notation, whatever signs it holds."""
    return "'" + text.replace("'", "\\'") + "'"


def slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", name).strip("-.")


def interval_text(values: Sequence[float] | None) -> str:
    return "no interval" if not values else f"{values[0]:.3f} to {values[1]:.3f}"


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
