"""Mirrors finished runs to a tracker such as W&B; never a source of truth.

    python -m specbench.track RUN... [track=wandb] [track.project=<name>]      mirror finished runs (or all below a folder)

A tracker is fed from the stored files, after the clock has stopped, in a process of its own: one that fails, hangs or crashes
costs a line on stderr, and a run whose tracker was unreachable is mirrored later by the command above. A further tracker is one
file with one class and one YAML (conf/track/<name>.yaml).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specbench.measure import store as files
from specbench.measure.masking import mask_mapping, mask_text
from specbench.schema import RunConfig
from specbench.trackers.rows import headlines, prompt_rows

TIMEOUT_SECONDS = 180.0
_TIMEOUT_KEY = "timeout_seconds"


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told first. id: the same whenever the run is mirrored, so that a second time replaces the first."""

    id: str
    name: str
    group: str
    tags: tuple[str, ...]
    config: dict[str, Any]
    status: str
    folder: Path


class Tracker:
    """What a tracker implements. Calls come in this order; anything may be raised, `finish` is called whatever was."""

    def start(self, run: TrackedRun) -> None:
        """A run begins (or is mirrored again)."""
        raise NotImplementedError

    def log(self, row: Mapping[str, Any]) -> None:
        """One prompt (sample, turn, repeat): see `trackers.rows.prompt_rows`. Values are numbers, texts or None."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table: `prompts`, and every CSV file of the run folder."""

    def figure(self, name: str, path: Path) -> None:
        """A picture (PNG) of the run folder."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """The headline numbers with their intervals (`speedup`, `speedup_lo`, `speedup_hi` ...)."""

    def artifact(self, name: str, paths: Mapping[str, Path]) -> None:
        """All files of the run folder, by their names in it."""

    def finish(self, status: str) -> str:
        """The end; returns where the numbers are now (an address or a folder)."""
        raise NotImplementedError


# ---------------------------------------------------------------------------------------------------- from files to rows
def tracked_run(folder: Path) -> TrackedRun:
    """Raises store.StoreError for a folder that is no run's."""
    run = files.read_run(folder)
    digest = str(run.get("config_hash", ""))
    identity = f"{digest}/{run.get('created_at')}/{folder.name}"
    sweep = folder.parent.name if folder.parent.parent.name == "sweeps" else None
    method, data = str(run.get("method")), str(run.get("data_name"))
    about = {key: run.get(key) for key in ("method", "baseline", "data_name", "config_hash", "device", "num_devices", "pair")}
    provenance = run.get("provenance") or {}
    about |= {key: provenance.get(key) for key in ("git", "python", "conditions_hash", "gpus")}
    about["packages"] = (provenance.get("packages") or {}).get("versions")
    return TrackedRun(
        id=hashlib.sha256(identity.encode()).hexdigest()[:16],
        name=folder.name,
        group=sweep or digest[:8],
        tags=(method, data),
        config=mask_mapping({**run.get("config", {}), "run": about}),
        status=str(run.get("status")),
        folder=folder,
    )


def folder_files(folder: Path) -> dict[str, Path]:
    """The files of a run folder by their names in it, hidden ones left out."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): path
        for path in found
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def mirror(folder: Path, tracker: Tracker) -> str:
    """Feed one stored run to a tracker; returns where its numbers are now. Raises what the tracker raises."""
    run = tracked_run(folder)
    rows = prompt_rows(files.read_samples(folder))
    columns = list(dict.fromkeys(name for row in rows for name in row))
    paths = folder_files(folder)
    status = "failed"
    try:
        tracker.start(run)
        for row in rows:
            tracker.log(row)
        tracker.table("prompts", columns, [[row.get(name) for name in columns] for row in rows])
        for name, path in paths.items():
            if path.suffix == ".csv":
                tracker.table(name.removesuffix(".csv"), *_read_csv(path))
            elif path.suffix == ".png":
                tracker.figure(name.removesuffix(".png"), path)
        values = {"status": run.status}
        if files.SUMMARY_FILE in paths:
            values |= headlines(files.read_summary(folder))
        tracker.summary(values)
        tracker.artifact(f"run-{run.id}", paths)
        status = run.status
    finally:
        where = tracker.finish(status)
    return where


def _read_csv(path: Path) -> tuple[list[str], list[list[str]]]:
    import csv

    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    return (rows[0], rows[1:]) if rows else ([], [])


# ---------------------------------------------------------------------------------------------------- in a process of its own
def create(node: Mapping[str, Any] | None, more_prefixes: Sequence[str] = ()) -> Tracker | None:
    """The tracker that a configuration node names, None for `track=none`. Raises ConfigError for wrong options."""
    from specbench.plugins import create_part

    if not node:
        return None
    options = {name: value for name, value in node.items() if name != _TIMEOUT_KEY}
    return create_part(options, Tracker, more_prefixes, key="track")


def mirror_apart(folder: Path, config: RunConfig) -> None:
    """Mirror a run that has just ended, and come back whatever happens: after its end, its failure or its time."""
    timeout_seconds = float(config.track.get(_TIMEOUT_KEY) or TIMEOUT_SECONDS)
    order = json.dumps({"folder": str(folder), "track": config.track, "allow_targets": config.allow_targets})
    name = str(config.track.get("_target_")).rpartition(".")[2]
    later = f"later: python -m specbench.track {folder}"
    try:
        with tempfile.TemporaryFile("w+") as said:
            child = subprocess.Popen(
                [sys.executable, "-m", "specbench.track", "--order"],
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            assert child.stdin is not None
            try:
                with contextlib.suppress(BrokenPipeError):
                    child.stdin.write(order + "\n")
                    child.stdin.flush()  # left open: it ends when this process does
                status: int | None = child.wait(timeout_seconds)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(child.pid, signal.SIGKILL)  # a tracker's own helpers too
                child.wait()
                with contextlib.suppress(BrokenPipeError):
                    child.stdin.close()
            said.seek(0)
            lines = [line for line in mask_text(said.read()).splitlines() if line.strip()]
    except Exception as error:
        return _say(f"{name}: {type(error).__name__}: {error}; {later}")
    if status == 0:
        return _say(f"mirrored by {name}: {lines[-1] if lines else 'done'}")
    why = f"stopped after {timeout_seconds:g} s" if status is None else (lines[-1] if lines else f"exit status {status}")
    return _say(f"{name}: not mirrored: {why}; {later}")


def _say(text: str) -> None:
    print(f"specbench: {' '.join(text.split())}", file=sys.stderr, flush=True)


def _by_order() -> int:
    """The child's side of `mirror_apart`."""
    from specbench.lifeline import end_with_parent

    order = json.loads(sys.stdin.buffer.readline())
    end_with_parent()
    tracker = create(order["track"], order["allow_targets"])
    assert tracker is not None
    try:
        print(mirror(Path(order["folder"]), tracker), flush=True)
    except Exception as error:
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", flush=True)
        return 1
    return 0


# ---------------------------------------------------------------------------------------------------- the command
def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 all mirrored, 1 some not, 2 a wrong option."""
    if list(arguments) == ["--order"]:
        return _by_order()
    from specbench import cli
    from specbench.cli_errors import explain

    overrides = [argument for argument in arguments if "=" in argument and not Path(argument).exists()]
    roots = [Path(argument) for argument in arguments if argument not in overrides]
    if not roots or any(str(root).startswith("-") for root in roots):
        _say("python -m specbench.track RUN... [track=wandb] [track.<option>=<value>]; RUN: a run folder, or one above several")
        return 0 if {"-h", "--help"} & set(arguments) else 2
    try:
        if not any(override.startswith("track=") for override in overrides):
            overrides = ["track=wandb", *overrides]
        config = cli.compose(overrides)
        if create(config.track, config.allow_targets) is None:
            raise ValueError("track=none: mirrors nothing; name a tracker")
    except Exception as error:
        _say(explain(error, overrides) or f"{type(error).__name__}: {error}")
        return 2
    bad = 0
    for root in roots:
        folders = files.find_run_folders(root)
        if not folders:
            bad += 1
            _say(f"{root}: no run folder")
        for folder in folders:
            try:
                if files.read_run(folder).get("status") == "started":
                    _say(f"{folder}: left out, it has not ended")
                    continue
                tracker = create(config.track, config.allow_targets)
                assert tracker is not None
                _say(f"{folder}: {mirror(folder, tracker)}")
            except Exception as error:  # the next one may go through
                bad += 1
                _say(f"{folder}: not mirrored: {type(error).__name__}: {mask_text(str(error))}")
    return 1 if bad else 0


if __name__ == "__main__":
    # By its own name: trackers are subclasses of specbench.track.Tracker, not of __main__.Tracker.
    from specbench.track import main as _main

    sys.exit(_main(sys.argv[1:]))
