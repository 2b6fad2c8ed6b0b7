"""AMUSD's open question 1: how often and how deep asynchronous drafts are rolled back, and what that costs, by data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from specbench.analysis.derive.conditions import Group
from specbench.analysis.derive.derive import Estimate
from specbench.analysis.derive.families import TEMPERATURE
from specbench.analysis.derive.ranking import is_ranked
from specbench.analysis.derive.rollback_counts import Rollbacks, rollbacks_of
from specbench.analysis.read.frames import Frames
from specbench.analysis.reports import study
from specbench.analysis.reports.study import Chapter
from specbench.analysis.reports.words import Words
from specbench.analysis.show.captions import verdict_text
from specbench.analysis.show.figures_rounds import drafting_runs
from specbench.analysis.show.style import Drawing, errors, legend_below, new_figure, new_panels, series, styled
from specbench.analysis.show.table import Table

MIN_ROLLBACKS = 20  # a distribution of fewer is not drawn
WORDS = Words(__name__)


@dataclass(frozen=True)
class Drafting(study.Case):
    """A run that drafted. AMUSD's default is not told, so that a run reads the same in every group of the family."""

    @property
    def temperature(self) -> float:
        return float(self.condition("decoding.temperature") or 0.0)

    @property
    def label(self) -> str:
        name, _, tags = str(self.facts["label"]).partition(" (")
        kept = [tag for tag in tags.removesuffix(")").split(", ") if tag not in ("", "stale=plain")]
        return name + (f" ({', '.join(kept)})" if kept else "") + (f", T={self.temperature:g}" if self.temperature else "")

    @property
    def shown(self) -> str:
        return self.label + ("" if is_ranked(self.facts) else " (not ranked)")

    @cached_property
    def counts(self) -> Rollbacks:
        return rollbacks_of(self.comparison, self.run)

    @property
    def share_percent(self) -> Estimate | None:
        share = self.counts.share_of_rounds
        return share and Estimate(*(None if x is None else 100 * x for x in (share.value, share.low, share.high)))

    @property
    def output(self) -> str:
        facts = self.facts
        same = f" ({int(facts['identical'])}/{int(facts['compared'])})" if facts["verdict"] == "identical" else ""
        return verdict_text(facts) + same


def cases_of(frames: Frames, groups: Sequence[Group]) -> list[Drafting]:
    """The drafting runs by data set, greedy ones first, as they were started: their folders are named by hashes."""
    cases = [Drafting.of(case) for case in study.cases_in(frames, groups)]
    shown = {id(c.comparison): {run for run, _ in drafting_runs(c.comparison)} for c in cases}
    drafting = [case for case in cases if case.run in shown[id(case.comparison)]]
    return study.by_data(sorted(drafting, key=lambda case: (case.temperature, str(case.facts["created_at"]), case.label)))


def table_of(chapter: Chapter[Drafting]) -> Table:
    sampled = len({case.temperature for case in chapter.cases}) > 1
    notes = study.notes_of(chapter.cases)
    return WORDS.table(chapter, "amusd_rollback", notes, sampled=sampled, setting=_setting(chapter))


def _setting(chapter: Chapter[Drafting]) -> str:
    """Of the rows under the first one's law: the others differ in temperature alone."""
    return study.setting_of([case for case in chapter.cases if case.group is chapter.cases[0].group])


# ---------------------------------------------------------------------------------------------------- figures
def cost_figure(chapter: Chapter[Drafting]) -> Drawing:
    """Three panels over the same rows: rollbacks per 100 tokens, drafting thrown away, the target's extra wait."""
    panels = (
        ("per_100_tokens", "rollbacks per\n100 tokens"),
        ("thrown_percent", "drafting thrown away,\n% of decode time"),
        ("wait_percent", "target's extra wait,\n% of decode time"),
    )
    rows, ticks, y = list[dict[str, Any]](), [], 0.0
    for data in study.data_of(chapter.cases):
        own = [case for case in chapter.cases if case.data == data]
        for case in own:
            rows.append({"data": data, "method": case.label, "y": y})
            for key, _ in panels:
                rows[-1] |= study.ends_of(key, getattr(case.counts, key))
            y += 1
        ticks.append((y - (len(own) + 1) / 2, data))
        y += 0.8
    frame = pd.DataFrame(rows)
    with styled():
        figure, axes = new_figure(1, 3, height=1.1 + 0.2 * y, sharey=True)
        for axis, (key, label) in zip(axes.flat, panels, strict=True):
            for number, method in enumerate(dict.fromkeys(frame["method"])):
                points = frame[(frame["method"] == method) & frame[key].notna()]
                if len(points):
                    bars = errors(points[key], points[f"{key}_low"], points[f"{key}_high"])
                    axis.errorbar(points[key], points["y"], xerr=bars, label=method, **series(number) | {"linestyle": ""})
            axis.axvline(0.0, color="black", linewidth=0.7)
            axis.set_yticks([at for at, _ in ticks], [name for _, name in ticks])
            axis.set(xlabel=label, ylim=(y - 0.3, -0.8))
            axis.tick_params(axis="y", length=0)
            axis.grid(axis="y", visible=False)
        legend_below(figure)
    return WORDS.drawing("rollback_cost", figure, frame.drop(columns="y"), setting=_setting(chapter))


def depth_figure(chapter: Chapter[Drafting]) -> Drawing | None:
    """Share of rollbacks that throw away at least k tokens, one panel per data set."""
    parts = []
    for case in chapter.cases:
        depth = case.comparison.rounds(case.run).num_discarded
        depth = depth[depth > 0]
        if len(depth) >= MIN_ROLLBACKS:
            at_least = np.arange(1, int(depth.max()) + 1)
            share = [float(np.mean(depth >= k)) for k in at_least]
            made = {"data": case.data, "method": case.label, "depth": at_least, "share": share, "n": len(depth)}
            parts.append(pd.DataFrame(made))
    if not parts:
        return None
    frame = pd.concat(parts, ignore_index=True)
    labels, data = list(dict.fromkeys(case.label for case in chapter.cases)), list(dict.fromkeys(frame["data"]))
    with styled():
        panels = new_panels(len(data), across=2, top=0.8, each=2.0, sharex=True, sharey=True)
        for axis, name in zip(panels.axes, data, strict=True):
            for method, own in frame[frame["data"] == name].groupby("method", sort=False):
                style = series(labels.index(str(method))) | {"markevery": max(1, len(own) // 8)}
                axis.plot(own["depth"], own["share"], label=method, **style)
            axis.set(title=name, ylim=(0, 1.04))
        for axis in panels.lowest:
            axis.set_xlabel("depth k in tokens")
            axis.xaxis.set_tick_params(labelbottom=True)
        for axis in panels.left:
            axis.set_ylabel("share of rollbacks ≥ k")
        legend_below(panels.figure)
    return WORDS.drawing("rollback_depth", panels.figure, frame, least=MIN_ROLLBACKS, setting=_setting(chapter))


STUDY = study.Study(
    **WORDS.study,
    chapters=study.by_family(cases_of, TEMPERATURE),
    table=table_of,
    shown=(cost_figure, depth_figure),
)
