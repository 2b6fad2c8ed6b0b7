"""The page: what every part found, as Markdown, from their files alone."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specbench.qualify.plan import NOT_RUN, PARTS, result

PAGE = "page.md"


def write_page(out: Path, device: str) -> None:
    """Write the page of a folder; parts without a file are said not to have run."""
    (out / PAGE).write_text(render(read(out), device), encoding="utf-8")


def read(out: Path) -> dict[str, dict[str, Any]]:
    """What every part found, by name."""
    found = {}
    for part in PARTS:
        path = out / f"{part.name}.json"
        found[part.name] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else result(NOT_RUN, "not asked for")
    return found


def render(found: Mapping[str, Mapping[str, Any]], device: str) -> str:
    """The Markdown. First one line a part, then each part's own tables and notes."""
    machine = found["machine"]
    on_cpu = not device.startswith("cuda")
    lines = [f"# {machine.get('name', device)}{', CPU form' if on_cpu else ''}", ""]
    if on_cpu:
        lines += ["**No GPU ran.** The same parts with tiny shapes: that the command works, and nothing of an accelerator.", ""]
    lines += [f"`python -m specbench.qualify --device {device}`, {machine.get('date', time.strftime('%Y-%m-%d'))}.", ""]
    lines += table(
        ("part", "result", "", "s"),
        [
            (
                f"[{part.title}](#{_anchor(part.title)})",
                found[part.name]["status"],
                found[part.name]["verdict"],
                _seconds(found[part.name]),
            )
            for part in PARTS
        ],
    )
    for part in PARTS:
        facts = found[part.name]
        lines += ["", f"## {part.title}", "", f"{facts['status']}: {facts['verdict']}"]
        for entry in facts.get("tables", ()):
            lines += ["", *([entry["title"], ""] if entry.get("title") else []), *table(entry["columns"], entry["rows"])]
        if facts.get("notes"):
            lines += ["", *(f"- {_cell(note)}" for note in facts["notes"])]
    return "\n".join(lines) + "\n"


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """A Markdown table; numbers to three places, None as a dash, bars escaped."""
    head = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return head + ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


def _seconds(facts: Mapping[str, Any]) -> str | None:
    return f"{facts['seconds']:.0f}" if "seconds" in facts else None


def _anchor(title: str) -> str:
    kept = "".join(c for c in title.lower() if c.isalnum() or c in " -")
    return kept.replace(" ", "-")
