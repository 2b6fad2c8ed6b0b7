"""Which runs may stand in one table.

Two runs are comparable where code, packages, machine, device, decoding law, limits, engine and baseline agree. Runs that agree
form a group; no table, figure or interval ever mixes groups. Within a group the pair and the data are told apart by the hashes
of their content, not by their names, and methods are compared on the prompts that all of them finished.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from specbench.analysis.read.frames import Frames, LeftOut
from specbench.analysis.read.run_rows import options_text
from specbench.analysis.read.shape import entry
from specbench.config.say import visible

CONDITIONS = {  # by what each is called where runs are told apart (the pair and the data are identities of their own)
    "conditions_hash": "provenance.conditions_hash",
    **{name: name for name in ("device", "pair.target.device", "format_version")},
    "simulated costs": "simulation.costs_sha256",
    **{f"decoding.{name}": f"config.decoding.{name}" for name in ("max_new_tokens", "temperature", "top_k", "top_p", "seed")},
    **{f"engine.{name}": f"config.engine.{name}" for name in ("attention", "threads")},
}
DATA = ("template", "history", "max_prompt_tokens")
PROVENANCE = ("git", "python", "packages", "scikit_learn_importable", "machine", "gpus", "environment")
_SHORT = 8  # digits of a hash in a label
_LONGEST = 72  # signs of a label


def conditions_of(run: Mapping[str, Any]) -> dict[str, Any]:
    """What must agree between two runs of one table, by dotted name; values are JSON-ready."""
    return {name: entry(run, where) for name, where in CONDITIONS.items()} | {
        "engine.backend": entry(run, "pair.target.backend") or "eager",  # what ran, whatever was asked for
        "source": run.get("source", "measured"),
        "baseline": run.get("baseline", entry(run, "config.baseline_name")),
        "baseline options": options_text(entry(run, "config.baseline") or {}),
    }


def pair_key(run: Mapping[str, Any]) -> tuple[Any, ...]:
    """The target's identity: weights, number format, tokenizer. The draft belongs to the method's row."""
    weights = entry(run, "pair.target.sha256") or entry(run, "pair.target.name")
    return (weights, entry(run, "pair.target.dtype"), entry(run, "pair.tokenizer.sha256"))


def draft_key(run: Mapping[str, Any]) -> tuple[Any, ...]:
    """The draft's: weights, number format, device, the errors of one that replays the target's text, wrong on purpose, and what
    lay in the folders that the method's options name (heads, a datastore)."""
    draft, folders = entry(run, "pair.draft") or {}, run.get("folders") or {}
    named = "+".join(str(sha256) for option, sha256 in sorted(folders.items()) if option.startswith("method."))
    return (draft.get("sha256") or draft.get("name"), draft.get("dtype"), draft.get("device"), draft.get("errors"), named)


def data_key(run: Mapping[str, Any]) -> tuple[Any, ...]:
    """The prompts' identity: content and presentation. Which samples were chosen is settled by pairing."""
    content = entry(run, "data.content_sha256") or entry(run, "data.sha256")
    presentation = (entry(run, f"config.data.{name}") for name in DATA)
    return (entry(run, "data.name") or run.get("data_name"), content, *presentation)


def method_key(run: Mapping[str, Any]) -> tuple[Any, ...]:
    return (run.get("method", entry(run, "config.method_name")), options_text(entry(run, "config.method") or {}))


@dataclass(frozen=True)
class Group:
    """Runs under equal conditions. `runs`: rows of `Frames.runs` with the columns label, pair_label and data_label added.

    label names method and draft as far as they vary in the group; pair_label and data_label carry digits of a hash where one
    name stands for several contents. noise_floors: A/A runs of the group, kept apart from the comparison.
    """

    number: int
    conditions: dict[str, Any]
    runs: pd.DataFrame
    noise_floors: pd.DataFrame
    left_out: tuple[LeftOut, ...]

    @cached_property
    def noise_floor(self) -> tuple[float, float] | None:
        """The interval of the newest A/A run under these conditions."""
        floors = self.noise_floors.dropna(subset=["speedup_low", "speedup_high"]).sort_values("created_at")
        return None if floors.empty else (float(floors["speedup_low"].iloc[-1]), float(floors["speedup_high"].iloc[-1]))

    def cells(self) -> list[tuple[tuple[str, str], pd.DataFrame]]:
        """The runs by (pair_label, data_label), in order of first appearance."""
        return [
            ((str(pair), str(data)), rows)
            for (pair, data), rows in self.runs.groupby(["pair_label", "data_label"], sort=False, dropna=False)
        ]


def groups(frames: Frames) -> list[Group]:
    """Runs by conditions, the largest group first (of equal ones, the newest). Repetitions of one run: the newest counts."""
    by_key: dict[str, list[int]] = {}
    for run, facts in frames.facts.items():
        by_key.setdefault(json.dumps(conditions_of(facts), sort_keys=True), []).append(run)
    newest = {key: max(str(frames.facts[run].get("created_at")) for run in runs) for key, runs in by_key.items()}
    order = sorted(by_key, key=lambda key: (len(by_key[key]), newest[key]), reverse=True)
    return [_group(frames, number, by_key[key]) for number, key in enumerate(order, start=1)]


def _group(frames: Frames, number: int, members: Sequence[int]) -> Group:
    floors = [run for run in members if entry(frames.facts[run], "config.measure.mode") == "aa"]
    left_out: list[LeftOut] = []
    latest: dict[tuple[Any, ...], int] = {}
    for run in sorted(set(members) - set(floors), key=lambda run: (str(frames.facts[run].get("created_at")), run)):
        facts = frames.facts[run]
        key = (method_key(facts), pair_key(facts), draft_key(facts), data_key(facts))
        old = latest.pop(key, None)
        if old is not None:
            newer = frames.runs.at[run, "folder"]
            left_out.append(LeftOut(str(frames.runs.at[old, "folder"]), f"the same run was repeated later: {newer}"))
        latest[key] = run
    kept = sorted(latest.values())  # as loaded: the order of a sweep's jobs, not the drawn one in which they ran
    runs = frames.runs.loc[kept].copy()
    facts = {run: frames.facts[run] for run in kept}
    runs["pair_label"] = _labels(_pair_names(runs), {run: pair_key(f) for run, f in facts.items()})
    runs["data_label"] = _labels(runs["data"], {run: data_key(f) for run, f in facts.items()})
    runs["label"] = _method_labels(runs, facts)
    for column in ("pair_label", "data_label", "label"):
        runs[column] = runs[column].map(_bounded)
    first = {label: i for i, label in reversed(list(enumerate([*runs["pair_label"], *runs["data_label"]])))}
    runs = runs.sort_values(["pair_label", "data_label"], key=lambda labels: labels.map(first), kind="stable")
    return Group(number, conditions_of(frames.facts[members[0]]), runs, frames.runs.loc[floors].copy(), tuple(left_out))


# ---------------------------------------------------------------------------------------------------- labels
def _labels(names: pd.Series[Any], keys: Mapping[int, tuple[Any, ...]]) -> list[str]:
    """Names, each with what tells it apart where one name stands for several keys."""
    by_name: dict[str, list[tuple[Any, ...]]] = {}
    for run, name in names.items():
        by_name.setdefault(str(name), []).append(keys[run])
    differing = {
        name: [i for i, own in enumerate(zip(*alike, strict=True)) if len({*own}) > 1] for name, alike in by_name.items()
    }
    labels = []
    for run, name in names.items():
        own = [str(keys[run][i]) for i in differing[str(name)] if keys[run][i] not in (None, "")]
        tags = [part[:_SHORT] for part in own if part != str(name)]
        labels.append(f"{name} ({', '.join(tags)})" if tags else str(name))
    return labels


def _bounded(label: str) -> str:
    """The label as it can be drawn: without signs that act, and of a length that leaves a figure its room."""
    shown = visible(label)
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 12]}... {zlib.crc32(label.encode()):08x}"


def _pair_names(runs: pd.DataFrame) -> pd.Series[Any]:
    """The pairs' names, with the target's where one pair was run with several; of one target that was run under several names
    that alone: the draft belongs to the method's row."""
    targets = runs.groupby("pair", dropna=False)["target"].transform("nunique")
    target = "target " + runs["target"].astype(str).str.removeprefix("builtin:")
    both = (runs["pair"].astype(str) + ", ").replace("custom, ", "") + target
    names = runs["pair"].where(targets <= 1, both)
    return names.where(names.groupby(runs["target"], dropna=False).transform("nunique") <= 1, target)


def _method_labels(runs: pd.DataFrame, facts: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """Method names with the options, and the draft, that vary among the runs of the same method."""
    options: dict[int, dict[str, Any]] = {run: json.loads(method_key(f)[1]) for run, f in facts.items()}
    drafts = dict(zip(runs.index, _labels(runs["draft"].fillna("none"), _draft_keys(runs, facts)), strict=True))
    labels = dict[int, str]()
    for method, of_method in runs.groupby("method", dropna=False).groups.items():
        names = sorted({name for run in of_method for name in options[run]})
        varying = [name for name in names if len({json.dumps(options[run].get(name)) for run in of_method}) > 1]
        for of_pair in runs.loc[of_method].groupby("pair_label").groups.values():
            several = len({drafts[run] for run in of_pair}) > 1
            for run in of_pair:
                tags = [f"{name}={_short(options[run].get(name))}" for name in varying]
                tags += [f"draft={drafts[run].removeprefix('builtin:')}"] if several else []
                labels[run] = f"{method} ({', '.join(tags)})" if tags else str(method)
    return [labels[run] for run in runs.index]


def _draft_keys(runs: pd.DataFrame, facts: Mapping[int, Mapping[str, Any]]) -> dict[int, tuple[Any, ...]]:
    """The runs' draft_key. What lies in the folders of a method's options counts where it differs between runs that asked for
    the same: a stop with a head, beside stops without one, is no other draft and has its own name.
    """
    keys = {run: draft_key(f) for run, f in facts.items()}
    asked = {run: (str(runs.at[run, "pair_label"]), *method_key(f)) for run, f in facts.items()}
    contents: dict[tuple[Any, ...], set[Any]] = {}
    for run, key in keys.items():
        contents.setdefault(asked[run], set()).add(key[-1])
    return {run: key if len(contents[asked[run]]) > 1 else (*key[:-1], "") for run, key in keys.items()}


def _short(value: Any) -> str:
    return "off" if value is None else value if isinstance(value, str) else json.dumps(value)


# ---------------------------------------------------------------------------------------------------- differences
def apart(frames: Frames, group: Group, other: Group) -> str:
    """What keeps two groups apart, in words."""
    ours, theirs = ([*g.runs.index, *g.noise_floors.index][0] for g in (group, other))
    return "; ".join(differences(frames.facts[theirs], frames.facts[ours]))


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What keeps two runs (run.json) apart, one phrase each: `decoding.temperature 0.0 against 1.0`."""
    ours, theirs = conditions_of(one), conditions_of(other)
    found = [
        f"{name} {ours[name]} against {theirs[name]}"
        for name in ours
        if name != "conditions_hash" and ours[name] != theirs[name]
    ]
    if ours["conditions_hash"] != theirs["conditions_hash"]:
        found += _provenance_differences(one.get("provenance") or {}, other.get("provenance") or {})
    return found


def state_differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The part of `differences` that nobody chose: code, packages, machine. Empty where their hashes agree."""
    ours, theirs = (run.get("provenance") or {} for run in (one, other))
    return [] if ours.get("conditions_hash") == theirs.get("conditions_hash") else _provenance_differences(ours, theirs)


def _provenance_differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    for section in PROVENANCE:
        ours, theirs = _flat(one.get(section)), _flat(other.get(section))
        names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name) and name not in _UNHASHED]
        for name in names[:3]:
            found.append(f"{section}{'.' if name else ''}{name} {_cut(ours.get(name))} against {_cut(theirs.get(name))}")
        if len(names) > 3:
            found.append(f"{section}: {len(names) - 3} more differences")
    return found or ["conditions_hash differs"]


_UNHASHED = {"load_average_1min", "dirty", "num_installed", "installed_sha256", "frequency_governor", "commit_why"}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        items = [(str(i), item) for i, item in enumerate(value)]
    elif value in (None, []):
        return {}
    else:
        return {prefix: value}
    return {name: leaf for key, item in items for name, leaf in _flat(item, f"{prefix}.{key}" if prefix else key).items()}


def _cut(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}..."
