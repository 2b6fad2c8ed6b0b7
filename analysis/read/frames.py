"""Stored runs as three data frames with documented columns.

    from specbench.analysis.read.frames import load
    frames = load(["runs"])
    frames.runs      one row per run          (RUNS_COLUMNS)
    frames.samples   one row per sample, turn, repeat and arm   (SAMPLES_COLUMNS)
    frames.rounds    one row per target forward                 (ROUNDS_COLUMNS)

The column `run` (and the index of `runs`) is the run's number in this loading. `samples` and `rounds` are sorted by run, and
`rounds.sample` is the row number in `samples`. A run that cannot be used is in `left_out` with its reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import union_categoricals

from specbench.analysis.read.columns import ROUNDS_COLUMNS, RUNS_COLUMNS, SAMPLES_COLUMNS
from specbench.analysis.read.reading import Array, RunFiles, UnusableRun, parse_ahead, read_folder
from specbench.analysis.read.run_rows import run_row
from specbench.analysis.read.sweeps import left_out_of
from specbench.measure.metrics import RoundTable
from specbench.measure.pairing import PairedTimes
from specbench.measure.records import store
from specbench.measure.records.events import ROUND_FIELDS

ARM_CODES = {"method": 0, "baseline": 1}


@dataclass(frozen=True)
class LeftOut:
    """A run that some table does not hold, and why. folder: of jobs that never ran, what they would have been."""

    folder: str
    why: str


@dataclass(frozen=True)
class Frames:
    """The runs that could be read. `facts` and `summaries` are run.json and summary.json by run number."""

    runs: pd.DataFrame
    samples: pd.DataFrame
    rounds: pd.DataFrame
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    facts: dict[int, dict[str, Any]]
    summaries: dict[int, dict[str, Any]]
    pairs: dict[int, PairedTimes]
    sample_bounds: Array = field(repr=False, default_factory=lambda: np.zeros(1, np.int64))
    round_bounds: Array = field(repr=False, default_factory=lambda: np.zeros(1, np.int64))
    # Of what is derived from a run more than once
    cache: dict[Any, Any] = field(repr=False, compare=False, default_factory=dict)
    _arrays: dict[str, dict[str, Array]] = field(repr=False, compare=False, default_factory=dict)

    def samples_of(self, run: int) -> pd.DataFrame:
        return self.samples.iloc[self.sample_bounds[run] : self.sample_bounds[run + 1]]

    def rounds_of(self, run: int) -> pd.DataFrame:
        return self.rounds.iloc[self.round_bounds[run] : self.round_bounds[run + 1]]

    def finished(self, run: int, arm: str, prompts: Iterable[str] | None = None) -> pd.DataFrame:
        """The finished samples of one arm (and of these prompts)."""
        samples = self.samples_of(run)
        keep = (samples["arm"] == arm) & samples["decode_seconds"].notna()
        return samples[keep if prompts is None else keep & samples["sample_id"].isin(prompts)]

    def own_arm(self, run: int) -> str:
        """The arm that the run is about: method, or baseline where there is no other."""
        columns = self._columns("samples")
        return "method" if (columns["arm"][self._rows("samples", run)] == "method").any() else "baseline"

    def table(self, run: int, arm: str, prompts: Iterable[str] | None = None) -> RoundTable:
        """The rounds of one arm (and of these prompts) for the functions of `specbench.measure.metrics`."""
        samples, rows = self._columns("samples"), self._rows("samples", run)
        wanted = (samples["arm"][rows] == arm) & ~np.isnan(samples["decode_seconds"][rows])
        if prompts is not None:
            some = set(prompts)
            wanted &= np.fromiter((name in some for name in samples["sample_id"][rows]), bool, len(wanted))
        chosen = np.flatnonzero(wanted)
        number = np.full(len(wanted), -1)
        number[chosen] = np.arange(len(chosen))
        rounds, span = self._columns("rounds"), self._rows("rounds", run)
        at = number[rounds["sample"][span] - rows.start]
        keep = at >= 0
        keys = zip(*(samples[name][rows][chosen].tolist() for name in ("sample_id", "turn", "repeat", "arm")), strict=True)
        return RoundTable(tuple(keys), at[keep].astype(np.int64), {name: rounds[name][span][keep] for name in ROUND_FIELDS})

    def _rows(self, frame: str, run: int) -> slice:
        bounds = self.sample_bounds if frame == "samples" else self.round_bounds
        return slice(int(bounds[run]), int(bounds[run + 1]))

    def _columns(self, frame: str) -> dict[str, Array]:
        """A frame's columns as arrays, made once: pandas' own access costs a millisecond, and runs may be thousands."""
        if frame not in self._arrays:
            of_samples = ("sample_id", "turn", "repeat", "arm", "decode_seconds")
            data, names = (self.samples, of_samples) if frame == "samples" else (self.rounds, ("sample", *ROUND_FIELDS))
            self._arrays[frame] = {name: _as_array(data[name]) for name in names}
        return self._arrays[frame]


def _as_array(values: pd.Series[Any]) -> Array:
    if isinstance(values.dtype, pd.CategoricalDtype):  # equal entries stay one object
        words = np.array([*values.cat.categories, ""], dtype=object)
        return np.asarray(words[values.cat.codes.to_numpy()])
    if pd.api.types.is_string_dtype(values.dtype):
        return values.to_numpy(dtype=object)
    return values.to_numpy()


def find(paths: Iterable[str | Path]) -> list[Path]:
    """All run folders at or below the paths, each once, in order. Raises ValueError naming a path that holds none."""
    found: dict[Path, None] = {}
    for path in paths:
        folders = store.find_run_folders(path) if Path(path).is_dir() else []
        if not folders:
            raise ValueError(f"{path}: no run folder there; give a run folder or a folder that holds some")
        found.update(dict.fromkeys(folders))
    return list(found)


def load(paths: Iterable[str | Path], *, unfinished: bool = False) -> Frames:
    """Frames of all runs at or below the paths.

    Raises ValueError if there is no run folder. Runs that cannot be used are in `left_out`.
    """
    left_out: list[LeftOut] = []
    notes: list[str] = []
    rows: list[dict[str, Any]] = []
    sample_columns: dict[str, list[Any]] = {name: [] for name in SAMPLES_COLUMNS}
    round_parts: list[dict[str, Any]] = []
    facts: dict[int, dict[str, Any]] = {}
    summaries: dict[int, dict[str, Any]] = {}
    pairs: dict[int, PairedTimes] = {}
    sizes: list[int] = []
    lengths: list[int] = []
    folders = find(paths)
    for folder, parsed in zip(folders, parse_ahead(folders), strict=True):
        number = len(rows)
        try:
            files = read_folder(folder, parsed, unfinished=unfinished)
            row, columns, rounds = run_row(files), _sample_columns(number, files), _round_part(number, files, sum(sizes))
            _sample_frame(columns)
        except UnusableRun as error:
            left_out.append(LeftOut(str(folder), str(error)))
            continue
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
            left_out.append(LeftOut(str(folder), f"damaged, or written by another program: {type(error).__name__}: {error}"))
            continue
        notes.extend(f"{folder}: {note}" for note in files.notes)
        rows.append(row)
        facts[number], summaries[number], pairs[number] = files.run, files.summary, files.pairs
        for name, values in columns.items():
            sample_columns[name] += values
        round_parts.append(rounds)
        sizes.append(len(files.samples))
        lengths.append(len(files.table))
    left_out += (LeftOut(what, why) for what, why in left_out_of(folders))
    runs = plain_frame({name: [row[name] for row in rows] for name in RUNS_COLUMNS})
    runs.index.name = "run"
    samples = _sample_frame(sample_columns)
    return Frames(
        runs, samples, _join(round_parts), tuple(left_out), tuple(notes), facts, summaries, pairs,
        np.cumsum([0, *sizes]), np.cumsum([0, *lengths]),
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------- one run
def plain_frame(columns: Mapping[str, Any]) -> pd.DataFrame:
    """A frame whose texts are Python objects: reading single entries of pandas' own string type costs ten times as much."""
    made = {}
    for name, values in columns.items():
        text = isinstance(values, list) and any(isinstance(value, str) for value in values)
        made[name] = pd.Series(values, dtype=object) if text else values
    return pd.DataFrame(made)


_PLAIN = ("sample_id", "turn", "repeat", "arm", "order", "category", "finish_reason", "error")
_NUMBERS = ("num_emitted", "num_rounds", "prefill_seconds", "decode_seconds", "memory_peak_bytes")
_CONCURRENT = {f"concurrent_{part}": part for part in ("draft", "discarded_draft", "idle")}
_LENGTHS = {"num_prompt_tokens": "prompt_ids", "num_output_tokens": "output_ids"}


def _sample_columns(run: int, files: RunFiles) -> dict[str, list[Any]]:
    """One run's samples by column: lists, for a small frame for each of a thousand runs costs more than reading them."""
    records = files.samples
    return {
        "run": [run] * len(records),
        **{name: list(map(attrgetter(name), records)) for name in (*_PLAIN, *_NUMBERS)},
        **{name: [len(getattr(record, ids)) for record in records] for name, ids in _LENGTHS.items()},
        **{name: [record.concurrent_seconds.get(part) for record in records] for name, part in _CONCURRENT.items()},
    }


def _sample_frame(columns: dict[str, list[Any]]) -> pd.DataFrame:
    kinds: dict[str, Any] = dict.fromkeys(("run", *_LENGTHS), np.int32)
    kinds |= dict.fromkeys((*_NUMBERS, *_CONCURRENT), float)  # None becomes NaN
    made = {name: np.array(columns[name], kinds[name]) if name in kinds else columns[name] for name in SAMPLES_COLUMNS}
    return plain_frame(made)


def _round_part(number: int, files: RunFiles, first_sample: int) -> dict[str, Any]:
    table = files.table
    rows = {record.key: i for i, record in enumerate(files.samples)}
    row = np.array([rows[key] for key in table.keys], dtype=np.int64)
    arm = np.array([ARM_CODES[key[3]] for key in table.keys], dtype=np.int8)
    return {
        "run": np.full(len(table), number, np.int32),
        "sample": (row[table.sample] + first_sample).astype(np.int32) if len(table) else np.zeros(0, np.int32),
        "arm": arm[table.sample] if len(table) else np.zeros(0, np.int8),
        **{name: table.columns[name] for name in ROUND_FIELDS},
        "phase": _categories(table.columns["phase"]),
    }


def _categories(words: Array) -> pd.Categorical:
    """Most runs have one phase throughout, which needs no hashing of ten thousand texts; with no words the type is the same."""
    first = words[0] if len(words) else ""
    if (words == first).all():
        return pd.Categorical.from_codes(np.zeros(len(words), np.int8), dtype=_only(first))
    return pd.Categorical(words)


@cache
def _only(word: str) -> pd.CategoricalDtype:
    """The type of a column that holds one word; making one costs more than filling the column."""
    return pd.CategoricalDtype([word])


def _join(parts: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One column after the other, giving the parts' memory back on the way."""
    if not parts:
        return pd.DataFrame(columns=list(ROUNDS_COLUMNS))
    joined: dict[str, Any] = {}
    for name in ROUNDS_COLUMNS:
        pieces = [part.pop(name) for part in parts]
        if name == "phase":
            joined[name] = union_categoricals(pieces, sort_categories=True)
        elif name == "arm":
            joined[name] = pd.Categorical.from_codes(np.concatenate(pieces), categories=list(ARM_CODES))
        else:
            joined[name] = np.concatenate(pieces)
    return pd.DataFrame(joined, copy=False)
