"""Whether run.json and summary.json have the shape that the analysis reads: they may be damaged, or a stranger's.

What is missing is no fault: older runs have less. Texts and numbers are what tables sort, group and print.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def entry(run: Any, name: str) -> Any:
    """A value of run.json or a summary by its dotted name (`pair.target.dtype`); None where the way to it is no mapping's."""
    found = run
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


INTERVALS = {"speedup": "ci95", "speedup_repeats": "ci95_repeats", "end_to_end": "end_to_end_ci95"}
Kind = tuple[str, Callable[[Any], bool]]
SECTION: Kind = ("section", lambda value: isinstance(value, Mapping))
TEXT: Kind = ("text", lambda value: isinstance(value, str))
TEXTS: Kind = ("list of texts", lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value))
NUMBER: Kind = ("number", lambda value: isinstance(value, int | float) and abs(value) < 1e300)
INTERVAL: Kind = (
    "interval",
    lambda value: isinstance(value, list) and len(value) == 2 and all(one is None or NUMBER[1](one) for one in value),
)


def _below(root: str, *names: str) -> list[str]:
    return [root, *(f"{root}.{name}" for name in names)]


RUN: dict[str, Kind] = {
    **dict.fromkeys(_below("config", "pair", "data", "decoding", "measure", "engine", "method", "baseline"), SECTION),
    **dict.fromkeys(_below("pair", "target", "draft", "tokenizer"), SECTION),
    **dict.fromkeys(_below("provenance", "git", "packages", "machine", "environment"), SECTION),
    **dict.fromkeys(_below("method_facts", "method", "baseline"), SECTION),
    **dict.fromkeys(("data", "folders", "simulation", "warmup", "scopes"), SECTION),
    **dict.fromkeys(("method", "baseline", "device", "created_at", "source", "data_name", "config_hash"), TEXT),
    **dict.fromkeys(("config.method_name", "config.baseline_name", "config.pair.name", "config.measure.mode"), TEXT),
    **{f"pair.{name}": TEXT for name in ("name", "tokenizer.sha256")},
    **{
        f"pair.{model}.{name}": TEXT
        for model in ("target", "draft")
        for name in ("name", "sha256", "dtype", "device", "errors")
    },
    **{f"pair.{model}.num_parameters": NUMBER for model in ("target", "draft")},
    **{f"data.{name}": TEXT for name in ("name", "source", "sha256", "content_sha256")},
    **{f"config.data.{name}": TEXT for name in ("name", "source", "template", "history")},
    **{f"config.decoding.{name}": NUMBER for name in ("max_new_tokens", "temperature", "top_k", "top_p", "seed")},
    "provenance.conditions_hash": TEXT,
    "config.data.max_prompt_tokens": NUMBER,
    "warnings": TEXTS,
}
SUMMARY: dict[str, Kind] = {
    # Of the pair no more: where a run ended before its models were there, names stand in the place of what is known of them.
    **dict.fromkeys(("pair", "data", "seconds", "baseline_seconds", "concurrent_seconds"), SECTION),
    **dict.fromkeys(("speedup", "counted", "lossless", "energy", "memory"), SECTION),
    **dict.fromkeys(("method", "baseline", "mode", "status", "speedup_why", "energy.source", "lossless.verdict"), TEXT),
    **{f"speedup.{key}": INTERVAL for key in INTERVALS.values()},
    "repeats": NUMBER,
    "warnings": TEXTS,
}


def misfit(document: Mapping[str, Any], kinds: Mapping[str, Kind]) -> str | None:
    """The first entry that is there and of another kind, in words."""
    for name, (what, fits) in kinds.items():
        value = entry(document, name)
        if value is not None and not fits(value):
            return f"{name} is no {what}"
    return None
