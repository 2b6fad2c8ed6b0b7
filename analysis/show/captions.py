"""What every table and figure says below itself: n, estimator, hardware, and what each word means."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import pandas as pd
import yaml

from specbench.analysis.derive.derive import Comparison
from specbench.config.say import counted


@dataclass(frozen=True)
class Word:
    """A word of captions: a report says its meaning once, at its end; a table's own files say it below the table."""

    key: str
    term: str
    meaning: str

    @property
    def sentence(self) -> str:
        return f"{self.term}: {self.meaning}"


_SAID: dict[str, dict[str, str]] = yaml.safe_load((files(__package__) / "definitions.yaml").read_text(encoding="utf-8"))
DEFINITIONS = {key: Word(key, **said) for key, said in _SAID.items()}


def definitions(*names: str) -> str:
    return " ".join(DEFINITIONS[name].sentence for name in names)


def words_in(caption: str) -> list[Word]:
    """The words that a caption defines."""
    return [word for word in DEFINITIONS.values() if word.sentence in caption]


def own_words(caption: str) -> str:
    """The caption without its definitions."""
    for word in words_in(caption):
        caption = caption.replace(word.sentence, "")
    return " ".join(caption.split())


def setting(conditions: Mapping[str, Any], comparisons: Sequence[Comparison]) -> str:
    """n, baseline, decoding law and hardware of a group's runs."""
    runs = pd.concat([c.runs for c in comparisons])
    prompts = _range([len(c.prompts) for c in comparisons if c.prompts] or runs["num_prompts"])
    repeats = counted(_range(runs["repeats"]), "repeat")
    temperature = conditions.get("decoding.temperature") or 0.0
    law = "greedy" if not temperature else f"T={temperature:g}"
    extra = [f"{name}={conditions[f'decoding.{name}']}" for name in ("top_k", "top_p") if conditions.get(f"decoding.{name}")]
    law = ", ".join([law, *extra, f"at most {conditions.get('decoding.max_new_tokens')} new tokens"])
    hardware = "; ".join(dict.fromkeys(runs["machine"]))
    dtype = ", ".join(dict.fromkeys(str(value) for value in runs["dtype"]))
    engine = f"{conditions.get('engine.backend')} engine"
    return (
        f"n = {counted(prompts, 'prompt')} x {repeats}; baseline {conditions.get('baseline')}; {law}; "
        f"hardware: {hardware}, device {conditions.get('device')}, {dtype}, {engine}, batch size 1."
    )


def _range(values: Iterable[Any]) -> str:
    known = sorted({int(v) for v in values if v == v and v is not None})
    return "?" if not known else str(known[0]) if len(known) == 1 else f"{known[0]} to {known[-1]}"


_LONGEST = 120  # bytes: file systems end at 255


def slug(*names: str) -> str:
    """The names in a file's name."""
    plain = ("".join(sign if sign.isalnum() else "_" for sign in name).strip("_").lower() for name in names)
    text = "_".join(name or "unnamed" for name in plain)
    return text if len(text.encode()) <= _LONGEST else f"{text[:16]}_{zlib.crc32(text.encode()):08x}"


def verdict_text(row: Mapping[str, Any]) -> str:
    """The lossless column: short, and loud where it must be."""
    if row["claim"] == "lossy":
        return "lossy"
    if row["verdict"] == "numerical_tie":
        return f"tie ({int(row['identical'])}/{int(row['compared'])} identical)"
    return {"identical": "identical", "different": "DIFFERENT"}.get(row["verdict"], "not compared")
