"""Whether two runs were made under the same conditions, and if not, what differs: for those who continue, skip or average.

What counts is what `provenance.conditions_hash` covers; here the differences get names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specbench.measure.records.provenance import ENVIRONMENT_OF_PLACE, GPU_CONDITIONS, MACHINE_CONDITIONS


def differences(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """One phrase per difference between two `provenance.collect()`s, "what: theirs, now mine"; empty for equal conditions."""
    if mine.get("conditions_hash") == theirs.get("conditions_hash"):
        return []
    return [
        f"{name}: {_short(old)}, now {_short(new)}" for name, new, old in _all_differences(_named(mine), _named(theirs))
    ] or ["conditions_hash: made by another version of specbench"]


def first_difference(mine: Any, theirs: Any) -> tuple[str, Any, Any] | None:
    """(dotted key, mine, theirs) of the first value in which two nested mappings differ, None if they are equal."""
    found = _all_differences(mine, theirs)
    return found[0] if found else None


def _named(facts: Mapping[str, Any]) -> dict[str, Any]:
    packages = facts["packages"]
    return {
        "git commit": facts["git"].get("commit"),
        "uncommitted changes": facts["git"].get("diff_sha256"),
        **{name: facts.get(name) for name in ("python", "scikit_learn_importable")},
        "package": packages["versions"],
        "plugin": packages["plugins"],
        "machine": {name: facts["machine"].get(name) for name in MACHINE_CONDITIONS},
        "gpu": {str(i): {name: gpu.get(name) for name in GPU_CONDITIONS} for i, gpu in enumerate(facts["gpus"])},
        "environment": {name: value for name, value in facts["environment"].items() if name not in ENVIRONMENT_OF_PLACE},
    }


def _all_differences(mine: Any, theirs: Any, at: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
        found: list[tuple[str, Any, Any]] = []
        for key in dict.fromkeys([*mine, *theirs]):
            found += _all_differences(mine.get(key), theirs.get(key), f"{at}.{key}" if at else str(key))
        return found
    if isinstance(mine, tuple | list) and isinstance(theirs, tuple | list):
        return [] if list(mine) == list(theirs) else [(at, mine, theirs)]
    return [] if mine == theirs else [(at, mine, theirs)]


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 24 else f"{text[:12]}..."
