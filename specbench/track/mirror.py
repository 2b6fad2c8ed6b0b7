"""From a run folder to a tracker, in a process of its own."""

from __future__ import annotations

import csv
import hashlib
import json
import tempfile
from pathlib import Path

from specbench.config.say import say
from specbench.config.schema import RunConfig
from specbench.measure.records import store as files
from specbench.measure.records.events import SIMULATED
from specbench.measure.records.masking import mask_mapping, mask_text
from specbench.processes.child import run_module
from specbench.track.rows import headlines, prompt_rows
from specbench.track.tracker import TIMEOUT_KEY, TIMEOUT_SECONDS, TrackedRun, Tracker


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
    tags = [method, data]
    if run.get("source") == SIMULATED:
        about |= {key: run.get(key) for key in ("source", "simulation")}
        tags.append(SIMULATED)
    about |= {key: provenance.get(key) for key in ("git", "python", "conditions_hash", "gpus")}
    about["packages"] = (provenance.get("packages") or {}).get("versions")
    return TrackedRun(
        id=hashlib.sha256(identity.encode()).hexdigest()[:16],
        name=folder.name,
        group=sweep or digest[:8],
        tags=tuple(tags),
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
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    return (rows[0], rows[1:]) if rows else ([], [])


def mirror_apart(folder: Path, config: RunConfig) -> None:
    """Mirror a run that has just ended, and come back whatever happens: after its end, its failure or its time."""
    timeout_seconds = float(config.track.get(TIMEOUT_KEY) or TIMEOUT_SECONDS)
    order = json.dumps({"folder": str(folder), "track": config.track, "allow_targets": config.allow_targets})
    name = str(config.track.get("_target_")).rpartition(".")[2]
    later = f"later: python -m specbench.track {folder}"
    try:
        with tempfile.TemporaryFile("w+") as said:
            status = run_module(["specbench.track", "--order"], order + "\n", output=said, timeout_seconds=timeout_seconds)
            said.seek(0)
            lines = [line for line in mask_text(said.read()).splitlines() if line.strip()]
    except Exception as error:
        return say(f"{name}: {type(error).__name__}: {error}; {later}")
    if status == 0:
        return say(f"mirrored by {name}: {lines[-1] if lines else 'done'}")
    why = f"stopped after {timeout_seconds:g} s" if status is None else (lines[-1] if lines else f"exit status {status}")
    return say(f"{name}: not mirrored: {why}; {later}")
