"""AMUSD's open question 2: which ratio of draft size to target size is best for asynchronous drafting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from specbench.analysis.derive.conditions import Group
from specbench.analysis.derive.derive import Estimate, is_ranked, ratio_of_speedups
from specbench.analysis.derive.families import model_name
from specbench.analysis.derive.theory import theory
from specbench.analysis.read.frames import Frames
from specbench.analysis.reports import study
from specbench.analysis.reports.study import Chapter
from specbench.analysis.show import check_tables, figures_speed
from specbench.analysis.show.captions import definitions
from specbench.analysis.show.document import Document
from specbench.analysis.show.members import EMITTED, LOSSLESS
from specbench.analysis.show.run_tables import told_from_one
from specbench.analysis.show.style import Drawing, new_panels, styled
from specbench.analysis.show.table import Cell, Column, Table, mark_columns

METHOD = "amusd"
MARKS = {"best": "\nbest", "not told apart": "\n≈ best"}  # in the map, by what the table says


@dataclass(frozen=True)
class Point(study.Case):
    """One pair of sizes on one data set. against: how it stands against the best of them; said: of the best, in a sentence."""

    gain: Estimate
    target: str
    draft: str
    size_ratio: float
    is_ranked: bool
    against: str = "not ranked"
    said: str = ""

    @property
    def name(self) -> str:
        return f"{self.draft} : {self.target}"

    @cached_property
    def cost_ratio(self) -> float:
        """Measured time of a draft forward over the target's time per token."""
        times = theory(self.comparison.frames, pd.Index([self.run]))
        return float(times["t_draft_ms"].iloc[0] / times["t_ar_ms"].iloc[0]) if len(times) else np.nan

    @property
    def size(self) -> float:
        return self.cost_ratio if np.isnan(self.size_ratio) else self.size_ratio


def cases_of(frames: Frames, groups: Sequence[Group]) -> list[Point]:
    """The method's runs by data set, larger targets first (their ratios to one draft are smaller), then smaller drafts."""
    found = []
    for case in study.cases_in(frames, groups):
        facts, gain = case.facts, case.speedup
        if facts["method"] == METHOD and gain is not None:
            target, draft = model_name(facts["target"]), model_name(facts["draft"])
            found.append(Point.of(case, gain, target, draft, float(facts["size_ratio"]), is_ranked(facts)))
    points = [point for data in study.data_of(found) for point in judged([p for p in found if p.data == data])]
    return study.by_data(points, lambda point: (_size(points, target=point.target), point.size))


def _size(points: Sequence[Point], **part: str) -> float:
    """Mean size of the points of a target or a draft."""
    ((name, value),) = part.items()
    sizes = [p.size for p in points if getattr(p, name) == value and not np.isnan(p.size)]
    return float(np.mean(sizes)) if sizes else 0.0


# ---------------------------------------------------------------------------------------------------- the best one
def judged(points: Sequence[Point]) -> list[Point]:
    """The points of a data set with which of those that are ranked has the largest speed-up, and which are not told from it.

    Two ratios are told apart when the 95 % interval of the ratio of their speed-ups, each over its own run's baseline and
    paired by prompt, excludes 1. The best of several noisy figures is too good: that is why the others are named.
    """
    ranked = [point for point in points if point.is_ranked]
    if not ranked:
        return list(points)
    best = max(ranked, key=lambda point: point.gain.value)
    against = {point.run: _against(best, point) for point in ranked}
    equal = [point.name for point in ranked if point is not best and not against[point.run].startswith("less")]
    size = "" if np.isnan(best.size_ratio) else f", a ratio of 1 : {1 / best.size_ratio:.1f} in parameters"
    cost = "" if np.isnan(best.cost_ratio) else f" and 1 : {1 / best.cost_ratio:.1f} in time per forward"
    gain = Cell.of(best.gain.value, best.gain.low, best.gain.high).text()
    said = f"{best.data}: the largest speed-up is {gain} with {best.name}{size}{cost}."
    if best.gain.low is not None and best.gain.low <= 1 <= (best.gain.high or 1.0):
        said += " It is not told from 1: no ratio can be called a gain here."
    if len(ranked) == 1:
        said += " There is no other ratio to compare it with."
    elif equal:
        said += f" Not distinguishable from it on these prompts: {', '.join(equal)}."
    else:
        said += " Every other ratio is told apart from it."
    return [replace(p, against=against.get(p.run, p.against), said=said if p is best else "") for p in points]


def _against(best: Point, other: Point) -> str:
    if other is best:
        return "best"
    ratio = ratio_of_speedups(best.pairs, other.pairs)
    if ratio is None or ratio.interval is None:
        return "no interval"
    low, high = ratio.interval
    return "not told apart" if low <= 1 <= high else f"less ({ratio.value:.2f} [{low:.2f}, {high:.2f}])"


def say(doc: Document, chapter: Chapter[Point]) -> None:
    for point in chapter.cases:
        if point.said:
            doc.text(point.said)


# ---------------------------------------------------------------------------------------------------- table
COLUMNS = (
    study.DATA,
    Column("target", "target", merge=True, text=True, of=lambda p: p.target),
    Column("draft", "draft", text=True, of=lambda p: p.draft),
    Column("size_ratio", "parameters", "draft : target", of=lambda p: p.size_ratio),
    Column("cost_ratio", "time", "draft : target", of=lambda p: p.cost_ratio),
    Column("speedup", "speed-up", best="largest", of=lambda p: p.gain),
    Column("told_from_1", "told from 1", text=True, of=lambda p: told_from_one(p.group, p.comparison, p.run)),
    Column("against_best", "against the best", text=True, of=lambda p: p.against),
    replace(EMITTED, best=""),
    Column("acceptance_percent", "acceptance %", digits=1, of=lambda p: p.acceptance_percent),
    Column("rollbacks_per_100", "rollbacks/100 tok.", digits=1, of=lambda p: p.figures["rollbacks_per_100"]),
    Column("joules_per_token", "J/token", digits=3, of=lambda p: p.energy.get("joules_per_token")),
    Column("baseline_joules_per_token", "J/token, baseline", digits=3, of=lambda p: p.energy.get("baseline_joules_per_token")),
    LOSSLESS,
)


def table_of(chapter: Chapter[Point]) -> Table:
    points, notes = chapter.cases, study.notes_of(chapter.cases)
    if all(point.energy.get("joules_per_token") is None for point in points):
        notes.append(f"Energy: not measured. {check_tables.why_no_energy(chapter.frames)}")
    table = chapter.table(
        "amusd_ratio",
        "Speed-up of asynchronous drafting by size of draft and target",
        COLUMNS,
        "Draft : target in parameters, and in measured time: a forward of the draft over the baseline's time per token. "
        "Against the best: ratio of the best speed-up of the data set over this one, each over its own run's baseline, paired "
        "by prompt; not told apart where its 95 % interval contains 1. Speed-ups of other targets have other baselines: the "
        "smaller target's is faster, and its text another. Rollbacks: rounds that threw drafts away, per 100 decode tokens. "
        f"{definitions('speedup', 'emitted_per_round', 'acceptance_rate', 'lossless', 'bold')} {study.setting_of(points)}",
        notes,
    )
    for row, point in zip(table.rows, points, strict=True):
        row.ranked = point.is_ranked
    for data in study.data_of(points):
        mark_columns(COLUMNS, [row for row in table.rows if row.cell("data").text() == data])
    return table


# ---------------------------------------------------------------------------------------------------- figures
def map_figure(chapter: Chapter[Point]) -> Drawing:
    """A map per data set: target down, draft across, the speed-up in numbers with its interval, darker where larger."""
    points = chapter.cases
    targets = sorted(dict.fromkeys(p.target for p in points), key=lambda name: _size(points, target=name))
    drafts = sorted(dict.fromkeys(p.draft for p in points), key=lambda name: _size(points, draft=name))
    low, high = min(p.gain.value for p in points), max(p.gain.value for p in points)
    data = study.data_of(points)
    with styled():
        panels = new_panels(len(data), across=2, top=0.5, each=0.75 + 0.62 * len(targets))
        for axis, name in zip(panels.axes, data, strict=True):
            for p in (p for p in points if p.data == name):
                column, row = drafts.index(p.draft), targets.index(p.target)
                shade = 0.0 if high == low else (p.gain.value - low) / (high - low)
                grey = 0.98 - 0.6 * shade  # light to dark: printed in grey it stays the same map
                axis.fill_between([column - 0.5, column + 0.5], row - 0.5, row + 0.5, facecolor=str(grey), edgecolor="white")
                ink = "white" if grey < 0.55 else "black"
                ends = "" if p.gain.low is None else f"\n[{p.gain.low:.2f}, {p.gain.high:.2f}]"
                text = f"{p.gain.value:.2f}{'' if p.is_ranked else ' *'}{ends}{MARKS.get(p.against, '')}"
                axis.text(column, row, text, ha="center", va="center", color=ink, fontsize=7, linespacing=1.15)
            axis.set(title=name, xlabel="draft", xlim=(-0.5, len(drafts) - 0.5), ylim=(len(targets) - 0.5, -0.5))
            axis.set_xticks(range(len(drafts)), drafts)
            axis.set_yticks(range(len(targets)), targets)
            axis.grid(visible=False)
            axis.tick_params(length=0)
            axis.spines[["left", "bottom"]].set_visible(False)
        for axis in panels.left:
            axis.set_ylabel("target")
    names = ("data", "target", "draft", "size_ratio", "cost_ratio")
    rows = [
        {name: getattr(p, name) for name in names}
        | {"speedup": p.gain.value, "low": p.gain.low, "high": p.gain.high, "ranked": p.is_ranked}
        for p in points
    ]
    stars = "" if all(p.is_ranked for p in points) else " Starred: not ranked, the output is not the target's."
    return Drawing(
        "speedup_by_ratio", "Speed-up by draft and target", panels.figure, pd.DataFrame(rows),
        "Speed-up with its 95 % interval over prompts, darker where larger (one scale for all panels); drafts from small to "
        f"large. ≈ best: not distinguishable from the best of its data set.{stars} {definitions('speedup')} "
        + study.setting_of(points),
    )  # fmt: skip


STUDY = study.Study(
    title="Draft size against target size in asynchronous drafting",
    heading="Ratios",
    nothing="no run of amusd with a speed-up: no ratio can be told",
    chapters=study.by_family(cases_of),
    say=say,
    table=table_of,
    shown=(
        map_figure,
        study.standard(figures_speed.against_size_ratio),
        lambda chapter: check_tables.noise_floor_table(chapter.groups[0]),
    ),
)
