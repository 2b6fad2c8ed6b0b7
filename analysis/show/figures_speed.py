"""Figures about speed: forest plot of speed-ups, speed-up against draft length and against the size of the draft."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from specbench.analysis.derive.conditions import Group
from specbench.analysis.derive.derive import Comparison
from specbench.analysis.derive.ranking import is_ranked, keeps_text
from specbench.analysis.derive.theory import theory
from specbench.analysis.read.frames import Frames
from specbench.analysis.show.captions import definitions, setting
from specbench.analysis.show.members import WHY_NOT_RANKED, members
from specbench.analysis.show.style import Drawing, Ladder, errors, legend_below, look, looks, new_figure, new_panels, styled
from specbench.measure.theory.formulas import SEQUENTIAL

FOREST_ROWS = 40  # on one page


def _speedups(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """One row per run with a speed-up, on the prompts of its comparison."""
    rows = []
    for m in members(*comparisons):
        if m.speedup is not None:
            repeats = m.comparison.speedup_over_repeats(m.run) or (np.nan, np.nan)
            row = {"run": m.run, "pair": m.comparison.pair, "data": m.comparison.data}
            row |= {name: m.facts[name] for name in ("method", "label", "draft", "draft_length", "size_ratio")}
            row |= {"speedup": m.speedup.value, "low": m.speedup.low, "high": m.speedup.high}
            row |= {"repeats_low": repeats[0], "repeats_high": repeats[1]}
            rows.append(row | {"ranked": is_ranked(m.facts), "keeps_text": keeps_text(m.facts)})
    frame = pd.DataFrame(rows)
    return frame if frame.empty else frame.astype({"low": float, "high": float})


def forest(frames: Frames, group: Group, comparisons: Sequence[Comparison]) -> Drawing | None:
    """Every speed-up with both of its intervals, by pair and data set; the baseline's noise floor as a band."""
    frame = _speedups(comparisons)
    if frame.empty:
        return None
    frame["order"] = range(len(frame))
    shown = frame.head(FOREST_ROWS)
    heads, ladder = list(dict.fromkeys(zip(shown["pair"], shown["data"], strict=True))), Ladder()
    with styled():
        figure, axes = new_figure(height=0.9 + 0.24 * (len(shown) + 1.3 * len(heads)))
        axis = axes[0, 0]
        for pair, data in heads:
            ladder.head(f"{data}, {pair}")
            for row in shown[(shown["pair"] == pair) & (shown["data"] == data)].itertuples():
                y = ladder.row(str(row.label) if row.ranked else f"{row.label} *")
                own = look(str(row.method))
                axis.plot([row.repeats_low, row.repeats_high], [y + 0.24] * 2, color="#B0B0B0", linewidth=1.0)
                axis.plot([row.low, row.high], [y, y], color=own["color"], linewidth=2.4, solid_capstyle="butt")
                face = own["color"] if row.ranked else "white"
                axis.plot(row.speedup, y, **own, markerfacecolor=face, markersize=6, linestyle="")
        low, high = np.nanmin(shown[["low", "speedup"]].to_numpy()), np.nanmax(shown[["high", "speedup"]].to_numpy())
        margin = 0.08 * (max(high, 1.0) - min(low, 1.0)) + 0.01
        axis.set_xlim(min(low, 1.0) - margin, max(high, 1.0) + margin)  # two repeats have intervals that go anywhere
        axis.axvline(1.0, color="black", linewidth=0.9)
        floor = group.noise_floors.dropna(subset=["speedup_low", "speedup_high"])
        for ends in floor[["speedup_low", "speedup_high"]].tail(1).itertuples(index=False):
            axis.axvspan(*ends, facecolor="#E4E4E4", edgecolor="none", zorder=0)
        ladder.label(axis, margin=0.3)
        axis.set_xlabel("speed-up over the baseline (decode tokens/s, ratio of totals)")
    note = f" Open marks (*): {WHY_NOT_RANKED}." if not shown["ranked"].all() else ""
    band = " Grey band: the baseline against itself (noise floor)." if len(floor) else ""
    more = f" The first {FOREST_ROWS} of {len(frame)} runs; all are in the CSV." if len(frame) > len(shown) else ""
    caption = (
        "Speed-up with its 95 % interval over prompts (thick; other prompts of this kind) and over repeats (thin, grey; this "
        f"machine's noise; cut at the edge).{note}{band}{more} "
        f"{setting(group.conditions, comparisons)}"
    )
    return Drawing("speedup_forest", "Speed-ups", figure, frame.drop(columns=["order", "run", "keeps_text"]), caption)


def against_draft_length(frames: Frames, group: Group, comparisons: Sequence[Comparison]) -> Drawing | None:
    """Lines of speed-up by draft_length where a method was run with at least two; the i.i.d. formula beside them."""
    frame = _speedups(comparisons)
    if frame.empty:
        return None
    frame = frame[frame["keeps_text"]].dropna(subset=["draft_length"])
    keys = ["pair", "data", "method", "draft"]
    lines = [rows.sort_values("draft_length") for _, rows in frame.groupby(keys, sort=False, dropna=False)]
    lines = [rows for rows in lines if rows["draft_length"].nunique() > 1 and rows["draft_length"].is_unique]
    what = ("speedup_by_draft_length", "Speed-up against draft length", "draft_length", "draft length")
    return _curves(frames, group, comparisons, lines, keys, *what) if lines else None


def against_size_ratio(frames: Frames, group: Group, comparisons: Sequence[Comparison]) -> Drawing | None:
    """Speed-up by draft size over target size where there are several; by their measured times where no size is known."""
    frame = _speedups(comparisons)
    if frame.empty:
        return None
    measured = theory(frames, group.runs.index)
    frame["cost_ratio"] = (measured["t_draft_ms"] / measured["t_ar_ms"]).reindex(frame["run"]).to_numpy()
    known = frame["size_ratio"].notna()
    name = "size_ratio" if known.any() else "cost_ratio"
    label = "draft : target, parameters" if known.any() else "draft : target, time per forward"
    frame = frame[frame["keeps_text"]].dropna(subset=[name])
    keys = ["data", "method", "draft_length", "pair"]
    several = frame.groupby(keys[:3], dropna=False)["draft"].transform(lambda drafts: len(set(drafts)) > 1)
    several |= frame.groupby(keys[:3], dropna=False)["pair"].transform("nunique") > 1
    lines = [rows.sort_values(name) for _, rows in frame[several].groupby(keys, sort=False, dropna=False)]
    what = ("speedup_by_size_ratio", "Speed-up against draft : target ratio", name, label)
    return _curves(frames, group, comparisons, lines, keys, *what, with_theory=False) if lines else None


def _curves(
    frames: Frames, group: Group, comparisons: Sequence[Comparison], lines: Sequence[pd.DataFrame], keys: Sequence[str],
    name: str, title: str, x: str, x_label: str, with_theory: bool = True,
) -> Drawing:  # fmt: skip
    """One panel per data set, one line per remaining key. lines: of `_speedups`, the rows of each with the same keys."""
    every = pd.concat(lines)
    predictions = theory(frames, every["run"].drop_duplicates()) if with_theory else None
    shown = [key for key in keys if key != "data" and every[key].astype(str).nunique() > 1] or ["method"]
    labels = [", ".join(_named(key, rows[key].iloc[0]) for key in shown) for rows in lines]
    styles = looks(labels, (str(rows["method"].iloc[0]) for rows in lines))
    panels = every["data"].unique()
    parts = []
    with styled():
        grid = new_panels(len(panels), across=3, top=0.6, each=2.4, sharey=True)
        for panel, axis in zip(panels, grid.axes, strict=True):
            for label, rows in zip(labels, lines, strict=True):
                if rows["data"].iloc[0] != panel:
                    continue
                bars = errors(rows["speedup"], rows["low"], rows["high"])
                axis.errorbar(rows[x], rows["speedup"], bars, label=label, **styles[label])
                made = rows.copy()
                if predictions is not None and rows["run"].isin(predictions.index).all():
                    fits = predictions.loc[rows["run"]]
                    made["theory"] = fits["speedup_sequential"].where(fits["schedule"] == SEQUENTIAL).to_numpy()
                    if made["theory"].notna().any():
                        dotted = {"color": styles[label]["color"], "linewidth": 0.9, "linestyle": (0, (1, 2))}
                        axis.plot(made[x], made["theory"], label=f"{label}, i.i.d. formula", **dotted)
                parts.append(made)
            axis.axhline(1.0, color="black", linewidth=0.9)
            axis.set(title=str(panel), xlabel=x_label)
        grid.axes[0].set_ylabel("speed-up")
        legend_below(grid.figure)
    beside = " Dotted: the i.i.d. formula at each run's own acceptance and times." if with_theory else ""
    caption = (
        f"{title}, with 95 % intervals over prompts.{beside} {definitions('speedup')} {setting(group.conditions, comparisons)}"
    )
    return Drawing(name, title, grid.figure, pd.concat(parts).drop(columns=["run"]), caption)


def _named(key: str, value: object) -> str:
    if key == "draft_length":
        return "draft_length " + ("n/a" if value != value else f"{value:g}")
    return f"draft {value}" if key == "draft" else str(value)
