"""Runs of an experiment that differ on purpose, in the baseline or in the decoding law, and in nothing else.

`conditions.groups` keeps such runs apart, as it must; an experiment sets them side by side. A family is what the groups have in
common: its numbers stand in one table, each row with the setting that it was made under, and are never averaged.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pandas as pd

from specbench.analysis.derive.conditions import Group, groups
from specbench.analysis.read.frames import Frames

BASELINE = ("baseline", "baseline options")
TEMPERATURE = ("decoding.temperature",)


def families(frames: Frames, varied: Iterable[str]) -> list[list[Group]]:
    """The groups of the frames by all conditions but `varied`, those with most runs first."""
    found: dict[str, list[Group]] = {}
    names = set(varied)
    for group in groups(frames):
        key = {name: value for name, value in group.conditions.items() if name not in names}
        found.setdefault(json.dumps(key, sort_keys=True), []).append(group)
    return sorted(found.values(), key=lambda members: -sum(len(g.runs) for g in members))


def model_name(name: Any) -> str:
    """`builtin:draft_small` as it stands in a table of one pair's parts."""
    return "none" if name is None or pd.isna(name) else str(name).removeprefix("builtin:")
