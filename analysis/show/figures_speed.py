"""Figures about speed: forest plot of speed-ups, speed-up against draft length and against the size of the draft."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from specbench.analysis.derive.conditions import Group
from specbench.analysis.derive.derive import Comparison, is_ranked
from specbench.analysis.derive.theory import theory
from specbench.analysis.read.frames import Frames
from specbench.analysis.show.captions import definitions, setting
from specbench.analysis.show.style import (
    Drawing,
    Ladder,
    errors,
    legend_below,
    legend_of,
    new_figure,
    new_panels,
    series,
    styled,
)
from specbench.measure.theory.formulas import speedup_sequential

FOREST_ROWS = 40  # on one page


def _speedups(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """One row per run with a speed-up, on the prompts of its comparison."""
    rows = []
    for comparison in comparisons:
        for run, facts in comparison.runs.iterrows():
            found = comparison.speedup(run)
            if found is not None:
                repeats = comparison.speedup_over_repeats(run) or (np.nan, np.nan)
                rows.append(
                    {
                        "run": run,
                        "pair": comparison.pair,
                        "data": comparison.data,
                        "method": facts["method"],
                        "label": facts["label"],
                        "draft": facts["draft"],
                        "draft_length": facts["draft_length"],
                        "size_ratio": facts["size_ratio"],
                        "speedup": found.value,
                        "low": np.nan if found.low is None else found.low,
                        "high": np.nan if found.high is None else found.high,
                        "repeats_low": repeats[0],
                        "repeats_high": repeats[1],
                        "ranked": is_ranked(facts),
                    }
                )
    return pd.DataFrame(rows)


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
                axis.plot([row.repeats_low, row.repeats_high], [y + 0.24] * 2, color="#8C8C8C", linewidth=1.0)
                axis.plot([row.low, row.high], [y, y], color="#0072B2", linewidth=2.4, solid_capstyle="butt")
                face = "#0072B2" if row.ranked else "white"
                axis.plot(row.speedup, y, marker="s", color="#0072B2", markerfacecolor=face, markersize=5, linestyle="")
        low, high = np.nanmin(shown[["low", "speedup"]].to_numpy()), np.nanmax(shown[["high", "speedup"]].to_numpy())
        margin = 0.08 * (max(high, 1.0) - min(low, 1.0)) + 0.01
        axis.set_xlim(min(low, 1.0) - margin, max(high, 1.0) + margin)  # two repeats have intervals that go anywhere
        axis.axvline(1.0, color="black", linewidth=0.9)
        floor = group.noise_floors.dropna(subset=["speedup_low", "speedup_high"])
        for _, band in floor.tail(1).iterrows():
            axis.axvspan(
                band["speedup_low"], band["speedup_high"], facecolor="#DDDDDD", edgecolor="#8C8C8C", hatch="////", linewidth=0
            )
        ladder.label(axis, margin=0.3)
        axis.set_xlabel("speed-up over the baseline (decode tokens/s, ratio of totals)")
    note = " Open squares (*): not ranked, the output is not the target's." if not shown["ranked"].all() else ""
    band = " Hatched band: the baseline against itself (noise floor)." if len(floor) else ""
    more = f" The first {FOREST_ROWS} of {len(frame)} runs; all are in the CSV." if len(frame) > len(shown) else ""
    return Drawing(
        "speedup_forest",
        "Speed-ups",
        figure,
        frame.drop(columns=["order", "run"]),
        "Speed-up with its 95 % interval over prompts (thick; other prompts of this kind) and over repeats (thin, grey; this "
        f"machine's noise; cut at the edge).{note}{band}{more} " + setting(group.conditions, comparisons),
    )


def against_draft_length(frames: Frames, group: Group, comparisons: Sequence[Comparison]) -> Drawing | None:
    """Lines of speed-up by draft_length where a method was run with at least two; the i.i.d. formula beside them."""
    frame = _speedups(comparisons)
    if frame.empty:
        return None
    frame = frame[frame["ranked"]].dropna(subset=["draft_length"])
    keys = ["pair", "data", "method", "draft"]
    lines = [(key, rows.sort_values("draft_length")) for key, rows in frame.groupby(keys, sort=False, dropna=False)]
    lines = [(key, rows) for key, rows in lines if rows["draft_length"].nunique() > 1 and rows["draft_length"].is_unique]
    if not lines:
        return None
    return _curves(
        frames, group, comparisons, lines, "draft_length", "draft length",
        "speedup_by_draft_length", "Speed-up against draft length", keys,
    )  # fmt: skip


def against_size_ratio(frames: Frames, group: Group, comparisons: Sequence[Comparison]) -> Drawing | None:
    """Speed-up by draft size over target size where there are several; by their measured times where no size is known."""
    frame = _speedups(comparisons)
    if frame.empty:
        return None
    measured = theory(frames, group.runs.index)
    cost = (measured["t_draft_ms"] / measured["t_ar_ms"]).reindex(frame["run"]).to_numpy()
    frame["cost_ratio"] = cost
    known = frame["size_ratio"].notna()
    name = "size_ratio" if known.any() else "cost_ratio"
    label = "draft : target, parameters" if known.any() else "draft : target, time per forward"
    frame = frame[frame["ranked"]].dropna(subset=[name])
    keys = ["data", "method", "draft_length", "pair"]
    several = frame.groupby(keys[:3], dropna=False)["draft"].transform(lambda drafts: len(set(drafts)) > 1)
    several |= frame.groupby(keys[:3], dropna=False)["pair"].transform("nunique") > 1
    lines = [(key, rows.sort_values(name)) for key, rows in frame[several].groupby(keys, sort=False, dropna=False)]
    if not lines:
        return None
    return _curves(
        frames, group, comparisons, lines, name, label, "speedup_by_size_ratio", "Speed-up against draft : target ratio", keys,
        with_theory=False,
    )  # fmt: skip


def _curves(
    frames: Frames, group: Group, comparisons: Sequence[Comparison], lines: Sequence[tuple[tuple[object, ...], pd.DataFrame]],
    x: str, x_label: str, name: str, title: str, keys: Sequence[str], with_theory: bool = True,
) -> Drawing:  # fmt: skip
    """One panel per data set, one line per remaining key."""
    panels = list(dict.fromkeys(key[list(keys).index("data")] for key, _ in lines))
    predictions = theory(frames, pd.concat([rows["run"] for _, rows in lines]).drop_duplicates()) if with_theory else None
    varying = [i for i, k in enumerate(keys) if k != "data" and len({str(key[i]) for key, _ in lines}) > 1]
    shown = varying or [list(keys).index("method")]
    names = list(dict.fromkeys(tuple(key[i] for i in shown) for key, _ in lines))
    parts = []
    with styled():
        grid = new_panels(len(panels), across=3, top=0.6, each=2.4, sharey=True)
        for panel, axis in zip(panels, grid.axes, strict=True):
            for key, rows in lines:
                if key[list(keys).index("data")] != panel:
                    continue
                own = tuple(key[i] for i in shown)
                label = ", ".join(_named(keys[i], key[i]) for i in shown)
                style = series(names.index(own))
                bars = errors(rows["speedup"], rows["low"], rows["high"])
                axis.errorbar(rows[x], rows["speedup"], bars, label=label, **style)
                made = rows.copy()
                if predictions is not None and rows["run"].isin(predictions.index).all():
                    fits = predictions.loc[rows["run"]]
                    made["theory"] = [
                        speedup_sequential(t.alpha, t.gamma, t.t_draft_ms / t.t_ar_ms, t.t_verify_ms / t.t_ar_ms)
                        if t.schedule == "sequential" else np.nan
                        for t in fits.itertuples()
                    ]  # fmt: skip
                    if made["theory"].notna().any():
                        axis.plot(
                            made[x],
                            made["theory"],
                            color=style["color"],
                            linewidth=0.9,
                            linestyle=(0, (1, 2)),
                            label=f"{label}, i.i.d. formula",
                        )
                parts.append(made)
            axis.axhline(1.0, color="black", linewidth=0.9)
            axis.set_title(str(panel))
            axis.set_xlabel(x_label)
        grid.axes[0].set_ylabel("speed-up")
        legend_below(grid.figure, *legend_of(grid.axes))
    beside = " Dotted: the i.i.d. formula at each run's own acceptance and times." if with_theory else ""
    return Drawing(
        name, title, grid.figure, pd.concat(parts).drop(columns=["run"]),
        f"{title}, with 95 % intervals over prompts.{beside} " + definitions("speedup") + " "
        + setting(group.conditions, comparisons),
    )  # fmt: skip


def _named(key: str, value: object) -> str:
    if key == "draft_length":
        return "draft_length " + ("n/a" if value != value else f"{value:g}")
    return f"draft {value}" if key == "draft" else str(value)
