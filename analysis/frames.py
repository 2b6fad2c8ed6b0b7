"""Stored runs as three data frames with documented columns.

    from specbench.analysis.frames import load
    frames = load(["runs"])
    frames.runs      one row per run          (RUNS_COLUMNS)
    frames.samples   one row per sample, turn, repeat and arm   (SAMPLES_COLUMNS)
    frames.rounds    one row per target forward                 (ROUNDS_COLUMNS)

The column `run` (and the index of `runs`) is the run's number in this loading. `samples` and `rounds` are sorted by run, and
`rounds.sample` is the row number in `samples`. A run that cannot be used is in `left_out` with its reason.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from specbench.analysis.columns import ROUNDS_COLUMNS, RUNS_COLUMNS, SAMPLES_COLUMNS
from specbench.analysis.reading import Array, RunFiles, UnusableRun, read_folder
from specbench.measure import store
from specbench.measure.events import ROUND_FIELDS
from specbench.measure.metrics import RoundTable
from specbench.measure.pairing import PairedTimes

ARM_CODES = {"method": 0, "baseline": 1}


@dataclass(frozen=True)
class LeftOut:
    """A run that some table does not hold, and why."""

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

    def samples_of(self, run: int) -> pd.DataFrame:
        return self.samples.iloc[self.sample_bounds[run] : self.sample_bounds[run + 1]]

    def rounds_of(self, run: int) -> pd.DataFrame:
        return self.rounds.iloc[self.round_bounds[run] : self.round_bounds[run + 1]]

    def own_arm(self, run: int) -> str:
        """The arm that the run is about: method, or baseline where there is no other."""
        return "method" if bool((self.samples_of(run)["arm"] == "method").any()) else "baseline"

    def table(self, run: int, arm: str, prompts: Iterable[str] | None = None) -> RoundTable:
        """The rounds of one arm (and of these prompts) for the functions of `specbench.measure.metrics`."""
        rounds = self.rounds_of(run)
        samples = self.samples_of(run)
        wanted = (samples["arm"] == arm).to_numpy(copy=True)
        if prompts is not None:
            wanted &= samples["sample_id"].isin(set(prompts)).to_numpy()
        wanted &= samples["decode_seconds"].notna().to_numpy()
        chosen = np.flatnonzero(wanted)
        number = np.full(len(samples), -1)
        number[chosen] = np.arange(len(chosen))
        at = number[rounds["sample"].to_numpy() - self.sample_bounds[run]]
        keep = at >= 0
        columns = {name: rounds[name].to_numpy()[keep] for name in ROUND_FIELDS if name in rounds and name != "mode"}
        columns["mode"] = np.asarray(rounds["mode"].astype(object))[keep]
        key_columns = [samples[name].iloc[chosen].tolist() for name in ("sample_id", "turn", "repeat", "arm")]
        return RoundTable(tuple(zip(*key_columns, strict=True)), at[keep].astype(np.int64), columns)


def find(paths: Iterable[str | Path]) -> list[Path]:
    """All run folders at or below the paths, each once, in order. Raises ValueError naming a path that holds none."""
    found: dict[Path, None] = {}
    for path in paths:
        folders = store.find_run_folders(path) if Path(path).is_dir() else []
        if not folders:
            raise ValueError(f"{path}: no run folder there; give a run folder or a folder that holds some")
        found.update(dict.fromkeys(folders))
    return list(found)


def load(paths: Iterable[str | Path], *, rounds: bool = True, unfinished: bool = False) -> Frames:
    """Frames of all runs at or below the paths. `rounds=False` is enough for tables from summaries alone.

    Raises ValueError if there is no run folder. Runs that cannot be used are in `left_out`.
    """
    left_out: list[LeftOut] = []
    notes: list[str] = []
    rows: list[dict[str, Any]] = []
    sample_parts: list[pd.DataFrame] = []
    round_parts: list[dict[str, Array]] = []
    facts: dict[int, dict[str, Any]] = {}
    summaries: dict[int, dict[str, Any]] = {}
    pairs: dict[int, PairedTimes] = {}
    sizes: list[int] = []
    lengths: list[int] = []
    for folder in find(paths):
        try:
            files = read_folder(folder, rounds=rounds, unfinished=unfinished)
        except UnusableRun as error:
            left_out.append(LeftOut(str(folder), str(error)))
            continue
        number = len(rows)
        notes.extend(f"{folder}: {note}" for note in files.notes)
        rows.append(_run_row(files))
        facts[number], summaries[number], pairs[number] = files.run, files.summary, files.pairs
        sample_parts.append(_sample_frame(number, files))
        if files.table is not None:
            round_parts.append(_round_part(number, files, sum(sizes)))
        sizes.append(len(files.samples))
        lengths.append(0 if files.table is None else len(files.table))
    runs = pd.DataFrame(rows, columns=list(RUNS_COLUMNS))
    runs.index.name = "run"
    samples = pd.concat(sample_parts, ignore_index=True) if sample_parts else pd.DataFrame(columns=list(SAMPLES_COLUMNS))
    return Frames(
        runs, samples, _join(round_parts), tuple(left_out), tuple(notes), facts, summaries, pairs,
        np.cumsum([0, *sizes]), np.cumsum([0, *lengths]),
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------- one run
def _run_row(files: RunFiles) -> dict[str, Any]:
    run, summary = files.run, files.summary
    config = run.get("config", {})
    pair, data = run.get("pair") or {}, run.get("data") or {}
    target, draft = pair.get("target") or {}, pair.get("draft") or {}
    speed = summary.get("speedup") or {}
    energy = summary.get("energy") or {}
    method = dict(config.get("method") or {})
    length = method.get("draft_length")
    interval = {
        f"{name}_{end}": (speed.get(key) or [None, None])[i]
        for name, key in (("speedup", "ci95"), ("speedup_repeats", "ci95_repeats"), ("end_to_end", "end_to_end_ci95"))
        for i, end in enumerate(("low", "high"))
    }
    numbers = ("emitted_per_round", "accepted_per_round", "accepted_run_length", "acceptance_rate", "num_rounds",
               "decode_tokens", "rollbacks", "num_discarded", "stale_rounds", "num_draft_forwards", "memory_peak_bytes",
               "num_failed")  # fmt: skip
    estimators = ("geomean", "end_to_end", "worst5", "share_slower", "speedup_specbench", "distinguishable")
    small, large = (part.get("num_parameters") for part in (draft, target))
    lossless = summary.get("lossless") or {}
    source = data.get("source") or config.get("data", {}).get("source")
    return {
        "folder": str(files.folder),
        "status": run.get("status"),
        "created_at": run.get("created_at"),
        "method": summary.get("method"),
        "baseline": summary.get("baseline"),
        "mode": summary.get("mode", "paired"),
        "options": options_text(method),
        "draft_length": _number(length if isinstance(length, int | float) else None),
        "pair": pair.get("name") or config.get("pair", {}).get("name"),
        "target": target.get("name"),
        "draft": draft.get("name"),
        "target_sha256": target.get("sha256"),
        "draft_sha256": draft.get("sha256"),
        "size_ratio": small / large if small and large else np.nan,
        "dtype": target.get("dtype"),
        "device": run.get("device"),
        "machine": machine_name(run),
        "data": data_name(str(data.get("name") or run.get("data_name")), source),
        "data_source": source,
        "data_sha256": data.get("content_sha256") or data.get("sha256"),
        "conditions_hash": (run.get("provenance") or {}).get("conditions_hash"),
        "config_hash": run.get("config_hash"),
        "num_prompts": len(files.pairs) or summary.get("data", {}).get("num_samples"),
        "repeats": summary.get("repeats"),
        "tokens_per_second": _number(summary.get("decode_tokens_per_second")),
        "baseline_tokens_per_second": _number(summary.get("baseline_decode_tokens_per_second")),
        "tokens_per_second_per_device": _number(summary.get("decode_tokens_per_second_per_device")),
        "speedup": _number(speed.get("ratio_of_totals")),
        **{name: _number(value) for name, value in interval.items()},
        **{name: _number(speed.get(name)) for name in estimators[:-1]},
        "distinguishable": speed.get("distinguishable"),
        **{name: _number(summary.get(name)) for name in numbers},
        **{
            f"seconds_{part}": _number((summary.get("seconds") or {}).get(part))
            for part in ("draft", "verify", "wait", "other")
        },
        **{
            f"concurrent_{part}": _number((summary.get("concurrent_seconds") or {}).get(part))
            for part in ("draft", "discarded_draft", "idle")
        },
        **{name: lossless.get(name) for name in ("claim", "verdict", "identical", "compared")},
        "energy_source": energy.get("source"),
        "joules_per_token": _number(energy.get("joules_per_token")),
        "baseline_joules_per_token": _number(energy.get("baseline_joules_per_token")),
    }


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def options_text(options: Mapping[str, Any]) -> str:
    """A plugin's options as one text; what is not set is left out."""
    kept = {key: value for key, value in options.items() if key != "_target_" and value is not None}
    return json.dumps(kept, sort_keys=True)


def data_name(name: str, source: str | None) -> str:
    """The name of the data as tables may print it: stand-in data never go under the name of the real set."""
    return f"{name}-standin" if source == "standin" and not name.endswith("-standin") else name


def machine_name(run: Mapping[str, Any]) -> str:
    """What the target ran on: the accelerators' names, or the processor's with its cores."""
    provenance = run.get("provenance") or {}
    gpus = [gpu.get("name") for gpu in provenance.get("gpus") or [] if gpu.get("name")]
    if gpus and str(run.get("device", "")).startswith("cuda"):
        return ", ".join(f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus))
    machine = provenance.get("machine") or {}
    return f"{machine.get('cpu_model') or 'unknown processor'} ({machine.get('logical_cores') or '?'} cores)"


def _sample_frame(number: int, files: RunFiles) -> pd.DataFrame:
    records = files.samples
    plain = ("sample_id", "turn", "repeat", "arm", "order", "category", "finish_reason", "error")
    numbers = ("num_emitted", "num_rounds", "prefill_seconds", "decode_seconds", "memory_peak_bytes")
    columns: dict[str, Any] = {"run": np.full(len(records), number, np.int32)}
    columns |= {name: [getattr(record, name) for record in records] for name in plain}
    columns |= {name: np.array([_number(getattr(record, name)) for record in records]) for name in numbers}
    columns["num_prompt_tokens"] = np.array([len(record.prompt_ids) for record in records], np.int32)
    columns["num_output_tokens"] = np.array([len(record.output_ids) for record in records], np.int32)
    for part in ("draft", "discarded_draft", "idle"):
        columns[f"concurrent_{part}"] = np.array([_number(record.concurrent_seconds.get(part)) for record in records])
    return pd.DataFrame(columns)[list(SAMPLES_COLUMNS)]


def _round_part(number: int, files: RunFiles, first_sample: int) -> dict[str, Array]:
    table = files.table
    assert table is not None
    rows = {record.key: i for i, record in enumerate(files.samples)}
    row = np.array([rows[key] for key in table.keys], dtype=np.int64)
    arm = np.array([ARM_CODES[key[3]] for key in table.keys], dtype=np.int8)
    return {
        "run": np.full(len(table), number, np.int32),
        "sample": (row[table.sample] + first_sample).astype(np.int32) if len(table) else np.zeros(0, np.int32),
        "arm": arm[table.sample] if len(table) else np.zeros(0, np.int8),
        **{name: table.columns[name] for name in ROUND_FIELDS},
    }


def _join(parts: Sequence[dict[str, Array]]) -> pd.DataFrame:
    """One column after the other, giving the parts' memory back on the way."""
    if not parts:
        return pd.DataFrame(columns=list(ROUNDS_COLUMNS))
    joined: dict[str, Any] = {}
    for name in ROUNDS_COLUMNS:
        values = np.concatenate([part.pop(name) for part in parts])
        if name == "arm":
            joined[name] = pd.Categorical.from_codes(values, categories=list(ARM_CODES))
        elif name == "mode":
            joined[name] = pd.Categorical(values)
        else:
            joined[name] = values
    return pd.DataFrame(joined, copy=False)
