"""What a tracker implements, and how a configuration names one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specbench.config.create import create_part

TIMEOUT_KEY, TIMEOUT_SECONDS = "timeout_seconds", 180.0


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
        """One prompt (sample, turn, repeat): see `track.rows.prompt_rows`. Values are numbers, texts or None."""

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


# ---------------------------------------------------------------------------------------------------- in a process of its own
def create(node: Mapping[str, Any] | None, more_prefixes: Sequence[str] = ()) -> Tracker | None:
    """The tracker that a configuration node names, None for `track=none`. Raises ConfigError for wrong options."""
    if not node:
        return None
    options = {name: value for name, value in node.items() if name != TIMEOUT_KEY}
    return create_part(options, Tracker, more_prefixes, key="track")
