"""Two runs side by side: which settings tell them apart, how their speed-ups stand to each other, whether they say the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specbench.analysis.derive.conditions import data_key, state_differences
from specbench.analysis.derive.derive import Estimate, ratio_of_speedups
from specbench.analysis.derive.outputs import Agreement, agree, read_outputs
from specbench.analysis.read.frames import Frames, load
from specbench.analysis.read.run_rows import options_text
from specbench.analysis.read.shape import entry
from specbench.config.schema import DATA_FACTS
from specbench.measure.records import store
from specbench.measure.records.asked import measured

_NAMES = {"method_name": "method", "baseline_name": "baseline", "data.name": "data", "pair.name": "pair"}


@dataclass(frozen=True)
class Two:
    """Runs 0 (A) and 1 (B) of `frames`.

    settings: what differs, by name, as (A's, B's); None where one has no such setting. state: what nobody chose (code,
    packages, machine) and differs, a phrase each. ratio: of the speed-ups, A over B, on num_common samples; None for the reason
    why_not. outputs: of both methods on equal prompts.
    """

    frames: Frames
    settings: dict[str, tuple[Any, Any]]
    state: list[str]
    ratio: Estimate | None
    why_not: str
    num_common: int
    outputs: Agreement


def two_runs(one: str | Path, other: str | Path, *, unfinished: bool = False) -> Two:
    """Raises ValueError for what is no run folder, the same folder twice, and a run that cannot be used, with the reason."""
    for folder in (one, other):
        if not store.is_run_folder(folder):
            why = (
                "it has no run.json; many runs are compared without the word `compare`"
                if Path(folder).is_dir()
                else "not there"
            )
            raise ValueError(f"{folder}: not a run folder ({why})")
    if Path(one).resolve() == Path(other).resolve():
        raise ValueError(f"{one}: named twice; compare takes two different runs")
    frames = load([one, other], unfinished=unfinished)
    for item in frames.left_out:  # jobs that a run's sweep left out are listed too
        if item.folder in (str(Path(one)), str(Path(other))):
            raise ValueError(f"{item.folder}: {item.why}")
    ours, theirs = frames.facts[0], frames.facts[1]
    why = _why_no_ratio(frames)
    common = set(frames.pairs[0].prompts) & set(frames.pairs[1].prompts)
    outputs = [read_outputs(folder, frames.own_arm(run)) for run, folder in enumerate((one, other))]
    alike = sorted(outputs[0].keys() & outputs[1].keys()) if data_key(ours) == data_key(theirs) else []
    return Two(
        frames,
        _settings(ours, theirs),
        state_differences(ours, theirs),
        None if why else ratio_of_speedups(frames.pairs[0], frames.pairs[1]),
        why,
        len(common) if data_key(ours) == data_key(theirs) else 0,
        agree((outputs[0][key], outputs[1][key]) for key in alike),
    )


def _why_no_ratio(frames: Frames) -> str:
    """Why the two speed-ups do not make a ratio; empty where they do."""
    for name, run in (("A", 0), ("B", 1)):
        if frames.runs.at[run, "mode"] == "aa":
            return f"{name} is the baseline against itself and measures the noise floor"
        if not len(frames.pairs[run]):
            why = entry(frames.summaries[run], "speedup_why") or "no sample was finished by both arms"
            return f"{name} has no speed-up: {why}"
    ours, theirs = frames.facts[0], frames.facts[1]
    if data_key(ours) != data_key(theirs):
        parts = ("name", "content", "template", "history", "max_prompt_tokens")
        differ = [
            f"{part} {str(a)[:12]} against {str(b)[:12]}"
            for part, a, b in zip(parts, data_key(ours), data_key(theirs), strict=True)
            if a != b
        ]
        return f"they were not run on the same prompts ({', '.join(differ)})"
    baselines = [(run.get("baseline"), options_text(entry(run, "config.baseline") or {})) for run in (ours, theirs)]
    if baselines[0] != baselines[1]:
        names = " against ".join(str(name) for name, _ in baselines)
        return f"their baselines are not the same ({names}{'' if baselines[0][0] != baselines[1][0] else ', other options'})"
    if not set(frames.pairs[0].prompts) & set(frames.pairs[1].prompts):
        return "no sample was finished by both"
    return ""


def _settings(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Options that differ, what is chosen by name first."""
    flat = [_flat(measured(run.get("config") or {})) for run in (ours, theirs)]
    same_data = flat[0].get("data.name") == flat[1].get("data.name")
    found: dict[str, tuple[Any, Any]] = {}
    for key in [*_NAMES, *flat[0], *flat[1]]:
        a, b = (one.get(key) for one in flat)
        of_the_data = not same_data and key.removeprefix("data.") in DATA_FACTS
        if json.dumps(a) != json.dumps(b) and not key.endswith("_target_") and not of_the_data:
            found[_NAMES.get(key, key)] = (a, b)
    return found


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= _flat(item, f"{prefix}{key}.") if isinstance(item, Mapping) else {f"{prefix}{key}": item}
    return found
