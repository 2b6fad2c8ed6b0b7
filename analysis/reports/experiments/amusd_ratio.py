"""AMUSD's open question 2: which ratio of draft size to target size is best for asynchronous drafting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from specbench.analysis.derive.conditions import Group, groups
from specbench.analysis.derive.derive import Comparison, Estimate, is_ranked, ratio_of_speedups
from specbench.analysis.derive.families import cells_of, model_name
from specbench.analysis.derive.theory import theory
from specbench.analysis.read.frames import Frames
from specbench.analysis.show import check_tables, figures_speed
from specbench.analysis.show.captions import definitions, setting, verdict_text
from specbench.analysis.show.document import Document
from specbench.analysis.show.paper_tables import cell, number
from specbench.analysis.show.run_tables import told_from_one
from specbench.analysis.show.style import Drawing, new_figure, styled
from specbench.analysis.show.table import Cell, Column, Row, Table, mark_best

TITLE = "Draft size against target size in asynchronous drafting"
METHOD = "amusd"


@dataclass(frozen=True)
class Point:
    """One pair of sizes on one data set. cost_ratio: measured time of a draft forward over the target's time per token."""

    comparison: Comparison
    run: int
    target: str
    draft: str
    size_ratio: float
    cost_ratio: float
    speedup: Estimate
    ranked: bool

    @property
    def name(self) -> str:
        return f"{self.draft} : {self.target}"


def fill(doc: Document, frames: Frames) -> Table:
    """A table, a map of speed-ups and the best ratio in words. Raises ValueError without a run of amusd over its baseline."""
    found = [(group, points_of(frames, group)) for group in groups(frames)]
    found = [(group, points) for group, points in found if points]
    if not found:
        raise ValueError("no run of amusd with a speed-up: no ratio can be told")
    first: Table | None = None
    for place, (group, points) in enumerate(found):
        suffix = "" if place == 0 else f"_{group.number}"
        doc.heading("Ratios" if place == 0 else f"Ratios, conditions {group.number}")
        verdicts = [
            verdict for data in _data(points) if (verdict := best_ratio([p for p in points if p.comparison.data == data]))
        ]
        for verdict in verdicts:
            doc.text(verdict.sentence)
        table = table_of(frames, group, points, {run: said for v in verdicts for run, said in v.against.items()})
        table.name += suffix
        drawing = map_figure(group, points)
        drawing.name += suffix
        curves = figures_speed.against_size_ratio(frames, group, list(cells_of(frames, group).values()))
        floor = check_tables.noise_floor_table(group)
        floor.name += suffix
        if curves is not None:
            curves.name += suffix
        for item in (table, drawing, curves, floor):
            doc.add(item)
        first = first or table
    assert first is not None
    return first


def points_of(frames: Frames, group: Group) -> list[Point]:
    """The group's runs of the method, by data set, then by target and draft with the largest first and last."""
    costs = theory(frames, group.runs.index)
    made = []
    for comparison in cells_of(frames, group).values():
        for run, facts in comparison.runs.iterrows():
            speedup = comparison.speedup(run)
            if facts["method"] != METHOD or speedup is None:
                continue
            cost = costs.loc[run, "t_draft_ms"] / costs.loc[run, "t_ar_ms"] if run in costs.index else np.nan
            made.append(
                Point(
                    comparison, int(run), model_name(facts["target"]), model_name(facts["draft"]), float(facts["size_ratio"]),
                    float(cost), speedup, is_ranked(facts),
                )
            )  # fmt: skip
    data = _data(made)
    return sorted(made, key=lambda p: (data.index(p.comparison.data), _order(made, p.target), _size(p)))


def _data(points: Sequence[Point]) -> list[str]:
    return list(dict.fromkeys(p.comparison.data for p in points))


def _size(point: Point) -> float:
    return point.size_ratio if point.size_ratio == point.size_ratio else point.cost_ratio


def _order(points: Sequence[Point], target: str) -> float:
    """Larger targets first: their ratios to the same draft are smaller."""
    own = [_size(p) for p in points if p.target == target and _size(p) == _size(p)]
    return float(np.mean(own)) if own else 0.0


# ---------------------------------------------------------------------------------------------------- the best one
@dataclass(frozen=True)
class Verdict:
    """The best ratio of a data set in a sentence, and for each run how it stands against it."""

    sentence: str
    against: dict[int, str]


def best_ratio(points: Sequence[Point]) -> Verdict | None:
    """The ratio with the largest speed-up, and which others are not told apart from it; None without one that is ranked.

    Two ratios are told apart when the 95 % interval of the ratio of their speed-ups, each over its own run's baseline and
    paired by prompt, excludes 1. The best of several noisy figures is too good: that is why the others are named.
    """
    ranked = [p for p in points if p.ranked]
    if not ranked:
        return None
    best = max(ranked, key=lambda p: p.speedup.value)
    against = {best.run: "best"}
    equal = []
    for other in ranked:
        if other is best:
            continue
        ratio = ratio_of_speedups(best.comparison.pairs(best.run), other.comparison.pairs(other.run))
        if ratio is None or ratio.low is None or ratio.high is None:
            against[other.run], together = "no interval", True
        else:
            together = ratio.low <= 1 <= ratio.high
            against[other.run] = (
                "not told apart" if together else f"less ({ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}])"
            )
        equal += [other.name] if together else []
    shown = cell(best.speedup).text()
    ratio_text = f", a ratio of 1 : {1 / best.size_ratio:.1f} in parameters" if best.size_ratio == best.size_ratio else ""
    cost = f" and 1 : {1 / best.cost_ratio:.1f} in time per forward" if best.cost_ratio == best.cost_ratio else ""
    sentence = f"{best.comparison.data}: the largest speed-up is {shown} with {best.name}{ratio_text}{cost}."
    if best.speedup.low is not None and best.speedup.low <= 1 <= (best.speedup.high or 1.0):
        sentence += " It is not told from 1: no ratio can be called a gain here."
    if len(ranked) == 1:
        sentence += " There is no other ratio to compare it with."
    elif equal:
        sentence += f" Not distinguishable from it on these prompts: {', '.join(equal)}."
    else:
        sentence += " Every other ratio is told apart from it."
    return Verdict(sentence, against)


# ---------------------------------------------------------------------------------------------------- table
def table_of(frames: Frames, group: Group, points: Sequence[Point], against: dict[int, str]) -> Table:
    rows = []
    for point in points:
        facts, comparison = point.comparison.runs.loc[point.run], point.comparison
        acceptance = comparison.per_round(point.run, "acceptance_rate")
        energy = frames.summaries[point.run].get("energy") or {}
        cells = {
            "data": Cell(comparison.data),
            "target": Cell(point.target),
            "draft": Cell(point.draft),
            "size_ratio": number(point.size_ratio),
            "cost_ratio": number(point.cost_ratio),
            "speedup": cell(point.speedup),
            "told_from_1": Cell(told_from_one(group, comparison, point.run)),
            "against_best": Cell(against.get(point.run, "not ranked")),
            "emitted_per_round": number(comparison.per_round(point.run, "emitted_per_round")),
            "acceptance_percent": number(None if acceptance is None else 100 * acceptance, 1),
            "rollbacks_per_100": number(comparison.figures(point.run)["rollbacks_per_100"], 1),
            "joules_per_token": number(energy.get("joules_per_token"), 3),
            "baseline_joules_per_token": number(energy.get("baseline_joules_per_token"), 3),
            "lossless": Cell(verdict_text(facts)),
        }
        rows.append(Row(cells, ranked=point.ranked))
    for data in _data(points):
        mark_best([row for row in rows if row.cell("data").text() == data], "speedup")
    columns = [
        Column("data", "data", merge=True, text=True),
        Column("target", "target", merge=True, text=True),
        Column("draft", "draft", text=True),
        Column("size_ratio", "parameters", "draft : target"),
        Column("cost_ratio", "time", "draft : target"),
        Column("speedup", "speed-up"),
        Column("told_from_1", "told from 1", text=True),
        Column("against_best", "against the best", text=True),
        Column("emitted_per_round", "emitted/round"),
        Column("acceptance_percent", "acceptance %"),
        Column("rollbacks_per_100", "rollbacks/100 tok."),
        Column("joules_per_token", "J/token"),
        Column("baseline_joules_per_token", "J/token, baseline"),
        Column("lossless", "lossless", text=True),
    ]
    notes = [note for comparison in dict.fromkeys(p.comparison.data for p in points) for note in _notes(points, comparison)]
    if all(row.cell("joules_per_token").value is None for row in rows):
        notes.append(f"Energy: not measured. {check_tables.why_no_energy(frames)}")
    return Table(
        "amusd_ratio",
        "Speed-up of asynchronous drafting by size of draft and target",
        columns,
        rows,
        "Draft : target in parameters, and in measured time: a forward of the draft over the baseline's time per token. "
        "Against the best: ratio of the best speed-up of the data set over this one, each over its own run's baseline, paired "
        "by prompt; not told apart where its 95 % interval contains 1. Speed-ups of other targets have other baselines: the "
        "smaller target's is faster, and its text another. Rollbacks: rounds that threw drafts away, per 100 decode tokens. "
        + definitions("speedup", "emitted_per_round", "acceptance_rate", "lossless", "bold")
        + " "
        + setting(group.conditions, list({id(p.comparison): p.comparison for p in points}.values())),
        list(dict.fromkeys(notes)),
    ).drop_empty_columns()


def _notes(points: Sequence[Point], data: str) -> list[str]:
    return [note for p in points if p.comparison.data == data for note in p.comparison.notes]


# ---------------------------------------------------------------------------------------------------- figure
def map_figure(group: Group, points: Sequence[Point]) -> Drawing:
    """A map per data set: target down, draft across, the speed-up in numbers with its interval, darker where larger."""
    data = _data(points)
    targets = list(dict.fromkeys(sorted((p.target for p in points), key=lambda t: _order(points, t))))
    drafts = list(dict.fromkeys(p.draft for p in sorted(points, key=_size)))
    drafts.sort(key=lambda d: float(np.mean([_size(p) for p in points if p.draft == d])))
    values = [p.speedup.value for p in points]
    low, high = min(values), max(values)
    columns = min(2, len(data))
    height = -(-len(data) // columns)
    with styled():
        figure, axes = new_figure(height, columns, height=0.5 + height * (0.75 + 0.62 * len(targets)))
        for axis, name in zip(axes.flat, data, strict=False):
            own = [p for p in points if p.comparison.data == name]
            verdict = best_ratio(own)
            for p in own:
                column, row = drafts.index(p.draft), targets.index(p.target)
                shade = 0.0 if high == low else (p.speedup.value - low) / (high - low)
                grey = 0.98 - 0.6 * shade  # light to dark: printed in grey it stays the same map
                axis.fill_between([column - 0.5, column + 0.5], row - 0.5, row + 0.5, facecolor=str(grey), edgecolor="white")
                ink = "white" if grey < 0.55 else "black"
                said = (
                    ""
                    if verdict is None
                    else {"best": "best", "not told apart": "≈ best"}.get(verdict.against.get(p.run, ""), "")
                )
                mark = f"\n{said}" if said else ""
                text = f"{p.speedup.value:.2f}" + ("" if p.ranked else " *")
                ends = "" if p.speedup.low is None else f"\n[{p.speedup.low:.2f}, {p.speedup.high:.2f}]"
                axis.text(column, row, f"{text}{ends}{mark}", ha="center", va="center", color=ink, fontsize=7, linespacing=1.15)
            axis.set_xlim(-0.5, len(drafts) - 0.5)
            axis.set_ylim(len(targets) - 0.5, -0.5)
            axis.set_xticks(range(len(drafts)), drafts)
            axis.set_yticks(range(len(targets)), targets)
            axis.set_title(name)
            axis.grid(visible=False)
            axis.tick_params(length=0)
            for side in ("left", "bottom"):
                axis.spines[side].set_visible(False)
        for axis in axes.flat[len(data) :]:
            axis.remove()
        for axis in axes[:, 0]:
            axis.set_ylabel("target")
        for axis in axes.flat[: len(data)]:
            axis.set_xlabel("draft")
    rows = [
        {"data": p.comparison.data, "target": p.target, "draft": p.draft, "size_ratio": p.size_ratio,
         "cost_ratio": p.cost_ratio, "speedup": p.speedup.value, "low": p.speedup.low, "high": p.speedup.high,
         "ranked": p.ranked}
        for p in points
    ]  # fmt: skip
    stars = "" if all(p.ranked for p in points) else " Starred: not ranked, the output is not the target's."
    return Drawing(
        "speedup_by_ratio", "Speed-up by draft and target", figure, pd.DataFrame(rows),
        "Speed-up with its 95 % interval over prompts, darker where larger (one scale for all panels); drafts from small to "
        f"large. ≈ best: not distinguishable from the best of its data set.{stars} " + definitions("speedup") + " "
        + setting(group.conditions, list({id(p.comparison): p.comparison for p in points}.values())),
    )  # fmt: skip
