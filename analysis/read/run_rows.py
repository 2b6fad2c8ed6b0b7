"""One row of the frame of runs: the columns of RUNS_COLUMNS from run.json and the summary."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from specbench.analysis.read.reading import RunFiles


def run_row(files: RunFiles) -> dict[str, Any]:
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
        "draft_length": as_float(length if isinstance(length, int | float) else None),
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
        "tokens_per_second": as_float(summary.get("decode_tokens_per_second")),
        "baseline_tokens_per_second": as_float(summary.get("baseline_decode_tokens_per_second")),
        "tokens_per_second_per_device": as_float(summary.get("decode_tokens_per_second_per_device")),
        "speedup": as_float(speed.get("ratio_of_totals")),
        **{name: as_float(value) for name, value in interval.items()},
        **{name: as_float(speed.get(name)) for name in estimators[:-1]},
        "distinguishable": speed.get("distinguishable"),
        **{name: as_float(summary.get(name)) for name in numbers},
        **{
            f"seconds_{part}": as_float((summary.get("seconds") or {}).get(part))
            for part in ("draft", "verify", "wait", "learn", "other")
        },
        **{
            f"concurrent_{part}": as_float((summary.get("concurrent_seconds") or {}).get(part))
            for part in ("draft", "discarded_draft", "idle")
        },
        **{name: lossless.get(name) for name in ("claim", "verdict", "identical", "compared")},
        "energy_source": energy.get("source"),
        "joules_per_token": as_float(energy.get("joules_per_token")),
        "baseline_joules_per_token": as_float(energy.get("baseline_joules_per_token")),
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
    """What the target ran on: the accelerators' names, or the processor's with its cores."""
    provenance = run.get("provenance") or {}
    gpus = [gpu.get("name") for gpu in provenance.get("gpus") or [] if gpu.get("name")]
    if gpus and str(run.get("device", "")).startswith("cuda"):
        return ", ".join(f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus))
    machine = provenance.get("machine") or {}
    return f"{machine.get('cpu_model') or 'unknown processor'} ({machine.get('logical_cores') or '?'} cores)"
