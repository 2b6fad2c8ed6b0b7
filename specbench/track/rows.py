"""What a tracker is fed with, from a run's records and summary: flat rows of numbers and texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from specbench.measure.records.events import SampleRecord

_HEADLINES = (
    "decode_tokens_per_second", "decode_tokens_per_second_per_device", "baseline_decode_tokens_per_second", "emitted_per_round",
    "accepted_per_round", "acceptance_rate", "rollbacks", "num_discarded", "stale_rounds", "num_rounds", "decode_tokens",
    "prefill_seconds_median", "memory_peak_bytes", "baseline_memory_peak_bytes", "num_failed", "num_prompt_too_long",
)  # fmt: skip


def prompt_rows(samples: Iterable[SampleRecord]) -> list[dict[str, Any]]:
    """One row per sample, turn and repeat, both arms in it, in the order in which they were measured."""
    rows: dict[tuple[str, int, int], dict[str, Any]] = {}
    for record in samples:
        row = rows.setdefault(
            (record.sample_id, record.turn, record.repeat),
            {
                "sample_id": record.sample_id,
                "turn": record.turn,
                "repeat": record.repeat,
                "category": record.category,
                "prompt_tokens": len(record.prompt_ids),
            },
        )
        for name in ("finish_reason", "prefill_seconds", "decode_seconds", "num_emitted", "num_rounds", "order", "session"):
            row[f"{record.arm}/{name}"] = getattr(record, name)
        if record.decode_seconds and record.num_emitted:
            row[f"{record.arm}/tokens_per_second"] = record.num_emitted / record.decode_seconds
    for row in rows.values():
        mine, theirs = row.get("method/tokens_per_second"), row.get("baseline/tokens_per_second")
        if mine and theirs:
            row["speedup"] = mine / theirs
    return list(rows.values())


def headlines(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Flat: numbers that exist (a null is left out), intervals as <name>_lo and <name>_hi."""
    values = {name: summary[name] for name in _HEADLINES if summary.get(name) is not None}
    speedup = summary.get("speedup") or {}
    for name, key, interval in (
        ("speedup", "ratio_of_totals", "ci95"),
        ("speedup_geomean", "geomean", "geomean_ci95"),
        ("speedup_end_to_end", "end_to_end", "end_to_end_ci95"),
    ):
        if speedup.get(key) is not None:
            values[name] = speedup[key]
        if speedup.get(interval):
            values[f"{name}_lo"], values[f"{name}_hi"] = speedup[interval]
    for name in ("distinguishable", "num_prompts", "share_slower"):
        if speedup.get(name) is not None:
            values[name] = speedup[name]
    energy = summary.get("energy") or {}
    for name in ("joules_per_token", "baseline_joules_per_token"):
        if energy.get(name) is not None:
            values[name] = energy[name]
    values["energy_source"] = energy.get("source", "none")
    values["lossless"] = (summary.get("lossless") or {}).get("verdict", "not_compared")
    return values
