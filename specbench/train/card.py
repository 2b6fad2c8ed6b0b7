"""The cards: what a trained part is made of (``training.json`` beside it), and what the built-in pair is worth.

Their words and tables are the templates in `forms`.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from specbench.measure.theory.formulas import speedup_sequential

CURVE_POINTS = 8  # of a distillation loss, so that a reader sees whether more tokens would have helped


def write_training(out: Path, report: dict[str, Any]) -> None:
    """Keep a part's facts beside its weights, and a card in words; that of heads shows what was measured of them."""
    (out / "training.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / "README.md").write_text(_filled("heads.md.j2" if "family" in report else "part.md.j2", report=report))


def write_pair_card(folder: Path, facts: dict[str, Any] | None) -> Path:
    """``README.md`` of the pair in `folder`, from each part's ``training.json`` and the measurements (``card.json``).

    `facts`: new measurements, kept as ``card.json``; None: the ones that are there already, if any.
    """
    if facts is not None:
        (folder / "card.json").write_text(json.dumps(facts, indent=1) + "\n")
    elif (folder / "card.json").exists():
        facts = json.loads((folder / "card.json").read_text())
    reports = [json.loads(p.read_text()) for p in sorted(folder.glob("*/training.json"))]
    reports.sort(key=lambda r: (not r["part"].startswith("target"), r["part"]))
    curves = []
    for report in reports:
        curve = report["history"]["curve"]
        if report.get("distilled_from") and curve:
            curves.append((report["part"], curve[:: -(-len(curve) // CURVE_POINTS)]))
    path = folder / "README.md"
    path.write_text(_filled("pair.md.j2", reports=reports, curves=curves, facts=facts))
    return path


def write_acceptance(folder: Path, facts: dict[str, Any]) -> Path:
    """``acceptance.json`` and the same as a table, ``acceptance.md``, from `accepted.measure_acceptance`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "acceptance.json").write_text(json.dumps(facts, indent=1) + "\n")
    path = folder / "acceptance.md"
    path.write_text(_filled("acceptance.md.j2", facts=facts))
    return path


def _filled(form: str, **values: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "forms"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "number": lambda value: "" if value is None else f"{value:.2f}",
        "share": "{:.0%}".format,
        "mean": lambda losses: f"{statistics.fmean(losses.values()):.2f}",
        "best_formula": _best_formula,
    }
    return environment.get_template(form).render(values).rstrip() + "\n"


def _best_formula(worth: dict[str, Any]) -> str:
    if worth["token_acceptance"] is None:
        return ""
    by_length = {g: speedup_sequential(worth["token_acceptance"], g, worth["cost"]) for g in range(1, 9)}
    best = max(by_length, key=lambda g: by_length[g])
    return f"{by_length[best]:.2f} (g={best})"
