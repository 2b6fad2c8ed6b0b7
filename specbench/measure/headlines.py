"""The part of a summary that a run prints, as one line of JSON on stdout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HEADLINES = (  # what a script needs; names stay, and docs/results.md lists them
    "run_folder", "status", "method", "baseline", "mode", "data.name", "data.source", "data.num_samples", "backend", "device",
    "repeats", "decode_tokens_per_second", "baseline_decode_tokens_per_second", "speedup", "speedup_why",
    "speedup.ratio_of_totals", "speedup.ci95", "speedup.ci95_repeats", "speedup.distinguishable", "speedup.end_to_end",
    "speedup.num_prompts", "emitted_per_round", "acceptance_rate", "lossless.verdict", "lossless.identical",
    "lossless.compared", "lossless.claim", "energy.joules_per_token", "memory_peak_bytes", "num_failed",
    "num_prompt_too_long", "num_graded", "num_right", "warning_levels",
)  # fmt: skip


def headlines(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a summary that HEADLINES names, in the summary's own shape; what it does not hold is left out."""
    found: dict[str, Any] = {}
    for name in HEADLINES:
        section, _, key = name.rpartition(".")
        place = summary.get(section) if section else summary
        if not isinstance(place, Mapping) or key not in place or (not section and isinstance(place[key], Mapping)):
            continue
        into = found.setdefault(section, {}) if section else found
        into[key] = place[key]
    return found
