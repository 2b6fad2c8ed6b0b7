"""Runs of an experiment that differ on purpose, in the baseline or in the decoding law, and in nothing else.

`conditions.groups` keeps such runs apart, as it must; an experiment sets them side by side. A family is what the groups have in
common: its numbers stand in one table, each row with the setting that it was made under, and are never averaged.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from specbench.analysis.derive.conditions import Group, groups
from specbench.analysis.derive.derive import Comparison, comparisons
from specbench.analysis.read.frames import Frames

BASELINE = ("baseline", "baseline options")
TEMPERATURE = ("decoding.temperature",)


@dataclass(frozen=True)
class Family:
    """Groups whose conditions agree but for the names that the experiment varies. number: from 1, the largest first."""

    number: int
    groups: tuple[Group, ...]

    def group_where(self, **wanted: Any) -> Group | None:
        """The group with these conditions, `.` in a name written `__`; None without one."""
        names = {name.replace("__", "."): value for name, value in wanted.items()}
        return next((g for g in self.groups if all(g.conditions.get(n) == v for n, v in names.items())), None)

    def table_name(self, name: str) -> str:
        """A file name for this family's table or figure: the first one has the plain name."""
        return name if self.number == 1 else f"{name}_{self.number}"


def families(frames: Frames, varied: Iterable[str]) -> list[Family]:
    """The groups of the frames by all conditions but `varied`, those with most runs first."""
    found: dict[str, list[Group]] = {}
    names = set(varied)
    for group in groups(frames):
        key = {name: value for name, value in group.conditions.items() if name not in names}
        found.setdefault(json.dumps(key, sort_keys=True), []).append(group)
    order = sorted(found.values(), key=lambda members: -sum(len(g.runs) for g in members))
    return [Family(number, tuple(members)) for number, members in enumerate(order, start=1)]


def cells_of(frames: Frames, group: Group | None) -> dict[tuple[str, str], Comparison]:
    """A group's comparisons by (pair, data); empty without a group."""
    return {} if group is None else {(c.pair, c.data): c for c in comparisons(frames, group)}


def options(facts: Mapping[str, Any], of: str = "method") -> dict[str, Any]:
    """The options that a run's method (or baseline) was given, from its run.json."""
    return dict((facts.get("config") or {}).get(of) or {})


def find_run(frames: Frames, comparison: Comparison | None, method: str, **wanted: Any) -> int | None:
    """The comparison's run of a method with these options (None: not set); None without one."""
    for run, row in [] if comparison is None else comparison.runs.iterrows():
        have = options(frames.facts[run])
        if row["method"] == method and all(have.get(name) == value for name, value in wanted.items()):
            return int(run)
    return None


def model_name(name: Any) -> str:
    """`builtin:draft_small` as it stands in a table of one pair's parts."""
    return "none" if name is None or pd.isna(name) else str(name).removeprefix("builtin:")
