"""The noise floor: what the harness reports when a method is compared with itself (`measure.mode=aa`).

A speed-up whose interval lies inside the floor of the same machine, pair and settings is not told from noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specbench.measure.records import store

SAME_SETTINGS = ("pair", "decoding", "engine")  # sections of the configuration that must agree; data and draft need not


def find_noise_floor(runs_dir: str | Path, run: Mapping[str, Any]) -> tuple[float, float] | None:
    """The 95 % interval of the newest finished A/A run under the conditions of `run` (run.json), or None.

    Same conditions: provenance.conditions_hash, baseline, device, and the configuration's target, decoding and engine.
    """
    for folder in reversed(store.find_run_folders(runs_dir)):
        try:
            other = store.read_run(folder)
            if other.get("status") != "success" or other.get("config", {}).get("measure", {}).get("mode") != "aa":
                continue
            if _conditions(other) != _conditions(run):
                continue
            interval = (store.read_summary(folder).get("speedup") or {}).get("ci95")
        except store.StoreError:
            continue  # a damaged folder of another run is no reason to stop this one
        if interval is not None:
            return float(interval[0]), float(interval[1])
    return None


def _conditions(run: Mapping[str, Any]) -> list[Any]:
    config = run.get("config", {})
    sections = [config.get(name) for name in SAME_SETTINGS]
    if isinstance(sections[0], Mapping):
        sections[0] = {key: value for key, value in sections[0].items() if not key.startswith("draft") and key != "name"}
    return [run.get("provenance", {}).get("conditions_hash"), run.get("baseline"), run.get("device"), *sections]
