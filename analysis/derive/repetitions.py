"""The same work done under several configurations: what each run's configuration is, and what moved against a reference.

A configuration is everything that must not change the output as long as numbers are exact: machine, code, device, number
format, attention, thread count, order of the arms, and the seed where nothing is drawn. The work is the rest: target, draft,
data, method, law and limits.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from specbench.analysis.derive.conditions import data_key, draft_key
from specbench.analysis.derive.outputs import Agreement, Key, Output, agree, read_outputs
from specbench.analysis.read.frames import Frames
from specbench.analysis.read.run_rows import machine_name, options_text
from specbench.analysis.read.shape import entry

PARTS = ("machine", "code", "device", "format", "draft format", "attention", "threads", "order", "seed")
_FORMATS = ("float64", "float32", "float16", "bfloat16")


def configuration_of(run: Mapping[str, Any]) -> dict[str, str]:
    """By the names in PARTS, from run.json."""
    devices = filter(None, (entry(run, f"pair.{model}.device") for model in ("target", "draft")))
    return {
        "machine": machine_name(run),
        "code": str(entry(run, "provenance.git.commit") or "unknown")[:8] + ("+" if entry(run, "provenance.git.dirty") else ""),
        "device": " and ".join(dict.fromkeys(map(str, devices))),
        "format": str(entry(run, "pair.target.dtype")),
        "draft format": str(entry(run, "pair.draft.dtype") or entry(run, "pair.target.dtype")),
        "attention": str(entry(run, "config.engine.attention")),
        "threads": str(entry(run, "config.engine.threads") or "chosen"),
        "order": str(entry(run, "config.measure.seed") or 0),
        "seed": "" if entry(run, "config.decoding.temperature") else str(entry(run, "config.decoding.seed") or 0),
    }


def work_of(run: Mapping[str, Any]) -> str:
    """What must agree for two runs to be the same work, as JSON, the method left out."""
    decoding = dict(entry(run, "config.decoding") or {})
    if not decoding.get("temperature"):
        decoding.pop("seed", None)
    parts = [
        entry(run, "pair.target.sha256"),
        data_key(run)[1:],
        decoding,
        entry(run, "config.baseline_name"),
        options_text(entry(run, "config.baseline") or {}),
    ]
    return json.dumps(parts, sort_keys=True, default=str)


def method_of(run: Mapping[str, Any]) -> str:
    """Method, options and draft, as JSON."""
    weights, _, _, errors, _ = draft_key(run)
    options = options_text(entry(run, "config.method") or {})
    return json.dumps([entry(run, "config.method_name"), options, weights, errors], default=str)


def varying(configurations: Iterable[Mapping[str, str]]) -> list[str]:
    """The parts that are not the same everywhere."""
    every = list(configurations)
    return [name for name in PARTS if len({configuration[name] for configuration in every}) > 1]


def rank(configuration: Mapping[str, str]) -> tuple[Any, ...]:
    """The reference comes first: on the CPU, the finest format, one thread, the plainest settings."""
    formats = [
        _FORMATS.index(f) if f in _FORMATS else len(_FORMATS) for f in (configuration["format"], configuration["draft format"])
    ]
    threads = int(configuration["threads"]) if configuration["threads"].isdigit() else 10**6
    return (configuration["device"] != "cpu", *formats, configuration["attention"] != "sdpa", threads, configuration["order"],
            configuration["seed"], configuration["machine"], configuration["code"])  # fmt: skip


def label_of(configuration: Mapping[str, str], names: Sequence[str]) -> str:
    """These parts in words: `bfloat16, 2 threads, order 1`. A format that only one of the models has is named with it."""
    alike = configuration["format"] == configuration["draft format"]
    words = {
        "code": "code {}",
        "format": "{}" if alike else "target {}",
        "draft format": "draft {}",
        "threads": "{} thread" if configuration["threads"] == "1" else "{} threads",
        "order": "order {}",
        "seed": "seed {}",
    }
    shown = [name for name in names if not (name == "draft format" and alike)]
    return ", ".join(words.get(name, "{}").format(configuration[name]) for name in shown)


# ---------------------------------------------------------------------------------------------------- one arm of one run
class Recorded:
    """One arm of one run: its outputs, the counts of its rounds, its times by repeat."""

    def __init__(self, frames: Frames, run: int, arm: str):
        self.run, self.arm = run, arm
        self.outputs: dict[Key, Output] = read_outputs(str(frames.runs.at[run, "folder"]), arm)
        table = frames.table(run, arm)
        counts = np.column_stack([table.num_drafted, table.num_accepted, table.num_emitted])
        order = np.argsort(table.sample, kind="stable")
        bounds = np.searchsorted(table.sample[order], np.arange(len(table.keys) + 1))
        self.rounds = {
            key[:3]: counts[order[bounds[i] : bounds[i + 1]]].tolist() for i, key in enumerate(table.keys)
        }  # by sample, turn and repeat: [drafted, accepted, emitted] of every round
        self.num_accepted, self.num_rounds = int(table.num_accepted.sum()), len(table)
        totals = frames.finished(run, arm).groupby("repeat")[["decode_seconds", "num_emitted"]].sum()
        self.ms_per_token = [
            1e3 * s / n for s, n in zip(totals["decode_seconds"], totals["num_emitted"], strict=True) if n
        ]  # by repeat

    def first(self) -> dict[tuple[str, int], Key]:
        """The first repeat of every sample and turn."""
        found: dict[tuple[str, int], Key] = {}
        for key in sorted(self.outputs, key=lambda key: key[2]):
            found.setdefault(key[:2], key)
        return found


def moved(recorded: Recorded, reference: Recorded) -> Agreement:
    """All repeats of a configuration against the reference's first; the reference's later repeats against its own first.

    Rounds too, where the prompts are the same.
    """
    first = reference.first()
    keys = [
        (key, first[key[:2]])
        for key in sorted(recorded.outputs)
        if key[:2] in first and not (recorded is reference and key == first[key[:2]])
    ]
    found = agree((recorded.outputs[ours], reference.outputs[theirs]) for ours, theirs in keys)
    for ours, theirs in keys:
        if recorded.outputs[ours].prompt_ids == reference.outputs[theirs].prompt_ids:
            found.rounds_same += recorded.rounds[ours] == reference.rounds[theirs]
    return found
