"""One row of the frame of runs: the columns of RUNS_COLUMNS from run.json and the summary."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from specbench.analysis.read.reading import RunFiles
from specbench.analysis.read.shape import INTERVALS, entry
from specbench.measure.records.events import PARTS, SIMULATED
from specbench.measure.warnings import makes_unusable

NUMBERS = {  # columns that are numbers, NaN where they are missing, by their names in the summary
    "tokens_per_second": "decode_tokens_per_second",
    "baseline_tokens_per_second": "baseline_decode_tokens_per_second",
    "tokens_per_second_per_device": "decode_tokens_per_second_per_device",
    "speedup": "speedup.ratio_of_totals",
    **{name: f"speedup.{name}" for name in ("geomean", "end_to_end", "worst5", "share_slower", "speedup_specbench")},
    **{name: name for name in ("emitted_per_round", "accepted_per_round", "accepted_run_length", "acceptance_rate")},
    **{name: name for name in ("num_rounds", "decode_tokens", "rollbacks", "num_discarded", "stale_rounds")},
    **{name: name for name in ("num_draft_forwards", "memory_peak_bytes", "num_failed")},
    **{name: name for name in ("num_graded", "num_right", "baseline_num_graded", "baseline_num_right")},
    **{f"seconds_{part}": f"seconds.{part}" for part in (*PARTS, "other")},
    **{f"concurrent_{part}": f"concurrent_seconds.{part}" for part in ("draft", "discarded_draft", "idle")},
    **{name: f"energy.{name}" for name in ("joules_per_token", "baseline_joules_per_token")},
}


def run_row(files: RunFiles) -> dict[str, Any]:
    run, summary = files.run, files.summary
    method = entry(run, "config.method") or {}
    length = method.get("draft_length")
    small, large = (entry(run, f"pair.{model}.num_parameters") for model in ("draft", "target"))
    source = entry(run, "data.source") or entry(run, "config.data.source")
    return {
        "folder": str(files.folder),
        "method": summary.get("method"),
        "baseline": summary.get("baseline"),
        "mode": summary.get("mode", "paired"),
        "options": options_text(method),
        "draft_length": as_float(length if isinstance(length, int | float) else None),
        "pair": entry(run, "pair.name") or entry(run, "config.pair.name"),
        **{model: entry(run, f"pair.{model}.name") for model in ("target", "draft")},
        **{f"{model}_sha256": entry(run, f"pair.{model}.sha256") for model in ("target", "draft")},
        "size_ratio": small / large if small and large else np.nan,
        "dtype": entry(run, "pair.target.dtype"),
        "machine": machine_name(run),
        "data": data_name(str(entry(run, "data.name") or run.get("data_name")), source),
        "data_source": source,
        "data_sha256": entry(run, "data.content_sha256") or entry(run, "data.sha256"),
        "conditions_hash": entry(run, "provenance.conditions_hash"),
        **{name: run.get(name) for name in ("status", "created_at", "device", "config_hash")},
        "num_prompts": len(files.pairs) or entry(summary, "data.num_samples"),
        "repeats": summary.get("repeats"),
        **{name: as_float(entry(summary, where)) for name, where in NUMBERS.items()},
        **{
            f"{name}_{end}": as_float((entry(summary, f"speedup.{key}") or (None, None))[i])
            for name, key in INTERVALS.items()
            for i, end in enumerate(("low", "high"))
        },
        "distinguishable": entry(summary, "speedup.distinguishable"),
        **{name: entry(summary, f"lossless.{name}") for name in ("claim", "verdict", "identical", "compared")},
        "energy_source": entry(summary, "energy.source"),
        "unusable": makes_unusable(map(str, summary.get("warnings") or ())),
    }


def as_float(value: Any) -> float:
    return float("nan") if value is None else float(value)


def options_text(options: Mapping[str, Any]) -> str:
    """A plugin's options as one text; what is not set is left out."""
    kept = {key: value for key, value in options.items() if key != "_target_" and value is not None}
    return json.dumps(kept, sort_keys=True)


def data_name(name: str, source: str | None) -> str:
    """The name of the data as tables may print it: stand-in data never go under the name of the real set."""
    return f"{name}-standin" if source == "standin" and not name.endswith("-standin") else name


def machine_name(run: Mapping[str, Any]) -> str:
    """What the target ran on: the accelerators' names, or the processor's with its cores; nothing, where it was simulated."""
    if run.get("source") == SIMULATED:
        return f"simulated: {entry(run, 'simulation.label')} ({entry(run, 'simulation.costs')})"
    gpus = [name for gpu in entry(run, "provenance.gpus") or [] if (name := entry(gpu, "name"))]
    if gpus and str(run.get("device", "")).startswith("cuda"):
        return ", ".join(f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus))
    machine = entry(run, "provenance.machine") or {}
    return f"{machine.get('cpu_model') or 'unknown processor'} ({machine.get('logical_cores') or '?'} cores)"
