"""The columns of the three frames, by name: what each holds and in which unit, from `columns.yaml`."""

from __future__ import annotations

from importlib.resources import files

import yaml

from specbench.measure.records.events import ROUND_FIELDS

_COLUMNS: dict[str, dict[str, str]] = yaml.safe_load((files(__package__) / "columns.yaml").read_text(encoding="utf-8"))

RUNS_COLUMNS = _COLUMNS["runs"]
SAMPLES_COLUMNS = _COLUMNS["samples"]
ROUNDS_COLUMNS = _COLUMNS["rounds"] | dict.fromkeys(ROUND_FIELDS, "see specbench.measure.records.events.Round")
