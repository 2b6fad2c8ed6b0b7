"""What a run was asked to measure, and whether two configurations ask the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from specbench.measure.records.jsonfile import canonical_json

NOT_HASHED = ("runs_dir", "resume")  # where a run is kept and whether it was continued do not change what is measured
# How long a silence is borne does not either. It counts as what all runs had before anybody chose it: these keep their hash.
USUAL_TIMEOUT_SECONDS = 60.0


def measured(config: Mapping[str, Any], timeout_seconds: float = USUAL_TIMEOUT_SECONDS) -> dict[str, Any]:
    """A stored configuration as far as it says what is measured; `engine.timeout_seconds` is one and the same for all."""
    kept = {key: value for key, value in config.items() if key not in NOT_HASHED}
    if "timeout_seconds" in (engine := kept.get("engine") or {}):
        kept["engine"] = {**engine, "timeout_seconds": timeout_seconds}
    return kept


def config_hash(config: Mapping[str, Any], timeout_seconds: float = USUAL_TIMEOUT_SECONDS) -> str:
    """sha256 (hex) of the canonical JSON of what a configuration measures."""
    return hashlib.sha256(canonical_json(measured(config, timeout_seconds)).encode()).hexdigest()


def asks_the_same(config: Mapping[str, Any], run: Mapping[str, Any]) -> bool:
    """Whether a run (its run.json) measures what the configuration says; the time-out may be in the hash of an older one."""
    own = ((run.get("config") or {}).get("engine") or {}).get("timeout_seconds", USUAL_TIMEOUT_SECONDS)
    return run.get("config_hash") in (config_hash(config), config_hash(config, own))
