"""Sweeps and runs as they stand now, read while somebody writes them.

A folder may be half there, damaged, or somebody else's: what cannot be read is shown as such, and nothing here raises. Every
file is read again only where it changed, and of samples.jsonl only what came to it, so that looking costs a measuring machine
little. Nothing is written, and no lock is taken.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from specbench.analysis.read.shape import entry
from specbench.measure.records import store
from specbench.measure.records.jsonfile import loads

STATES = ("done", "running", "silent", "failed", "interrupted", "unreadable", "waiting", "left out")
SILENT_SECONDS = 600.0  # without a line: the run's process was killed, or loads, or has a very long sample
SINGLE = "Single runs"
_MOST_BYTES = 2**26  # of one JSON file
_CHUNK = 2**20


def number_at(value: Any, name: str) -> float | None:
    """An entry that is a number of ordinary size."""
    found = entry(value, name)
    return found if isinstance(found, int | float) and not isinstance(found, bool) and abs(found) < 1e15 else None


@dataclass(frozen=True)
class Job:
    """One run of a sweep, or a run by itself. what: what tells it from the others. status: one of STATES. error: why it failed,
    or was left out.

    num_lines: lines of samples.jsonl so far; num_planned: when it has ended, None where nobody said. last: the newest of them.
    silent_seconds: since anything was written.
    """

    folder: Path
    what: str
    status: str
    run: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    num_lines: int = 0
    last: Mapping[str, Any] = field(default_factory=dict)
    silent_seconds: float = 0.0

    @property
    def num_planned(self) -> int | None:
        planned = number_at(self.run, "num_lines")
        return None if planned is None else int(planned)

    @property
    def label(self) -> str:
        return self.what or " on ".join(str(entry(self.run, key) or "?") for key in ("method", "data_name"))


@dataclass(frozen=True)
class Followed:
    """A sweep with its jobs, or the runs that belong to none."""

    name: str
    status: str
    jobs: tuple[Job, ...]
    changed: float = 0.0

    @property
    def counts(self) -> dict[str, int]:
        """Jobs by state, in the order of STATES; states without one are left out."""
        found = Counter(job.status for job in self.jobs)
        return {state: found[state] for state in STATES if found[state]}

    @property
    def num_ended(self) -> int:
        return sum(self.counts.get(state, 0) for state in ("done", "failed", "left out"))


class Follower:
    """Looks at run folders again and again."""

    def __init__(self, roots: Iterable[str | Path]):
        self.roots = [Path(root) for root in roots]
        self._json: dict[Path, tuple[tuple[int, int, int], dict[str, Any]]] = {}
        self._lines: dict[Path, _Lines] = {}

    def look(self) -> list[Followed]:
        """Sweeps, what changed last first, then the single runs, the newest first."""
        folders, records = self._find()
        found: list[Followed] = []
        taken: set[Path] = set()
        for path in records:
            record = self._read(path)
            listed = record.get("jobs")
            told = [job for job in listed if isinstance(job, dict)] if isinstance(listed, list) else []
            options = [[str(o) for o in said] if isinstance(said := job.get("overrides"), list) else [] for job in told]
            jobs = []
            for job, own in zip(told, options, strict=True):
                # A sweep that was moved is found beside its record.
                folder = path.parent / Path(str(job.get("folder"))).name
                varying = [o for o in own if not all(o in others for others in options)]
                error, unfit = (str(job.get(name) or "") for name in ("error", "left_out"))
                jobs.append(self._job(folder, " ".join(varying), error, unfit))
                taken.add(folder)
            if jobs:
                name = str(record.get("sweep") or path.parent.name)
                found.append(
                    Followed(name, str(record.get("status")), tuple(jobs), max(map(_changed, [j.folder for j in jobs])))
                )
        found.sort(key=lambda sweep: -sweep.changed)
        single = [folder for folder in folders if folder not in taken]
        jobs = sorted((self._job(folder) for folder in single), key=lambda job: str(job.run.get("created_at")), reverse=True)
        return [*found, Followed(SINGLE, "", tuple(jobs))] if jobs else found

    def _find(self) -> tuple[list[Path], list[Path]]:
        folders: dict[Path, None] = {}
        records: dict[Path, None] = {}
        for root in self.roots:
            for place, below, names in os.walk(root):  # a folder that goes meanwhile is passed over
                below[:] = sorted(name for name in below if not name.startswith("."))
                if store.RUN_FILE in names:
                    folders[Path(place)] = None
                    below.clear()
                records |= dict.fromkeys(Path(place) / n for n in names if n.startswith("sweep_") and n.endswith(".json"))
        return list(folders), list(records)

    def _job(self, folder: Path, what: str = "", error: str = "", unfit: str = "") -> Job:
        run = self._read(folder / store.RUN_FILE)
        if not run:
            there = (folder / store.RUN_FILE).exists()
            without = "failed" if error else "left out" if unfit else "waiting"
            return Job(folder, what, "unreadable" if there else without, error=error or unfit)
        status, error = run.get("status"), str(run.get("error") or error)
        if status == "success":
            return Job(folder, what, "done", run, self._read(folder / store.SUMMARY_FILE))
        lines = self._lines.setdefault(folder, _Lines(folder / store.SAMPLES_FILE))
        lines.read()
        silent = max(0.0, time.time() - _changed(folder))
        states = {"started": "running" if silent < SILENT_SECONDS else "silent"}
        states |= {name: name for name in ("failed", "interrupted")}
        shown = states.get(str(status), "unreadable")
        return Job(folder, what, shown, run, {}, error if shown == "failed" else "", lines.count, lines.last, silent)

    def _read(self, path: Path) -> dict[str, Any]:
        """A JSON file's object; empty where there is none that can be read."""
        try:
            facts = path.stat()
            key = (facts.st_ino, facts.st_size, facts.st_mtime_ns)
            if path in self._json and self._json[path][0] == key:
                return self._json[path][1]
            found = loads(path.read_bytes()) if path.is_file() and facts.st_size <= _MOST_BYTES else {}
        except (OSError, ValueError, RecursionError):
            return {}
        made = found if isinstance(found, dict) else {}
        self._json[path] = (key, made)
        return made


class _Lines:
    """How many whole lines a growing file has, and the last of them."""

    def __init__(self, path: Path):
        self.path, self.offset, self.count, self._rest, self._newest = path, 0, 0, b"", b""

    @property
    def last(self) -> dict[str, Any]:
        try:
            found = loads(self._newest)
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def read(self) -> None:
        try:
            if not self.path.is_file():
                return
            if self.path.stat().st_size < self.offset:  # written anew
                self.__init__(self.path)  # type: ignore[misc]
            with self.path.open("rb") as file:
                file.seek(self.offset)
                while part := file.read(_CHUNK):
                    self.offset += len(part)
                    *whole, self._rest = (self._rest + part).split(b"\n")
                    self.count += len(whole)
                    self._newest = whole[-1] if whole else self._newest
        except OSError:
            return


def _changed(folder: Path) -> float:
    """When a run's folder, its record or its samples were written last; 0 where there is nothing yet."""
    times = [0.0]
    for path in (folder, folder / store.RUN_FILE, folder / store.SAMPLES_FILE):
        try:
            times.append(path.stat().st_mtime)
        except OSError:
            continue
    return max(times)


def started_at(run: Mapping[str, Any]) -> str:
    """When a run began, in this machine's time."""
    try:
        return datetime.fromisoformat(str(run.get("created_at"))).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return ""
