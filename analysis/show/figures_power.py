"""Figures about power and energy: watts over time by device, and energy per token against speed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.patches import Patch

from specbench.analysis.derive.conditions import Group
from specbench.analysis.derive.derive import Comparison
from specbench.analysis.derive.ranking import is_ranked
from specbench.analysis.read.frames import Frames
from specbench.analysis.show.captions import setting
from specbench.analysis.show.members import members
from specbench.analysis.show.style import COLOURS, LINES, Drawing, errors, legend_below, look, looks, new_panels, styled
from specbench.measure.records import store

MAX_PANELS = 6
BLOCK_ORDER = "idle, method, baseline, baseline, method"


def power_over_time(frames: Frames, group: Group, comparisons: Sequence[Comparison]) -> Drawing | None:
    """One panel per run with a power trace, one line per device; the method's blocks are shaded where they are marked."""
    traces: list[tuple[str, pd.DataFrame]] = []
    for comparison in comparisons:
        for _, facts in comparison.runs.iterrows():
            rows = pd.DataFrame(store.read_power(facts["folder"]))
            if len(rows) and "watts" in rows and rows["watts"].notna().any():
                traces.append((f"{facts['label']}\n{comparison.data}", rows.dropna(subset=["watts"])))
    if not traces:
        return None
    shown = traces[:MAX_PANELS]
    names: dict[str, int] = {}
    parts = []
    with styled():
        panels = new_panels(len(shown), across=2, top=0.7, each=1.75, sharey=True)
        for axis, (title, rows) in zip(panels.axes, shown, strict=True):
            seconds = rows["time_seconds"] - rows["time_seconds"].min()
            if "arm" in rows:
                for begin, end in _blocks(seconds, rows["arm"]):
                    axis.axvspan(begin, end, facecolor="#E8E8E8", edgecolor="none", linewidth=0)
            for (role, device), own in rows.assign(seconds=seconds).groupby(["role", "device"], sort=False):
                name = f"{role} ({str(device)[:12]})"
                number = names.setdefault(name, len(names))
                style = {"color": COLOURS[number % len(COLOURS)], "linestyle": LINES[number % len(LINES)], "linewidth": 1.0}
                axis.plot(own["seconds"], own["watts"], label=name, **style)
            axis.set_title(title, fontsize=8)
            axis.set_ylim(bottom=0)
            parts.append(rows.assign(run=title.replace("\n", ", "), seconds=seconds))
        for axis in panels.left:
            axis.set_ylabel("watts")
        for axis in panels.lowest:
            axis.set_xlabel("seconds of the energy pass")
        marked = any("arm" in rows for _, rows in shown)
        legend_below(panels.figure, {"method's blocks": Patch(facecolor="#E8E8E8")} if marked else None)
    more = f" The first {MAX_PANELS} of {len(traces)} runs." if len(traces) > len(shown) else ""
    order = "" if marked else f" In time: {BLOCK_ORDER}."
    caption = (
        f"Power by device during the energy pass, whose timings are not used for speed.{order}{more} "
        f"{setting(group.conditions, comparisons)}"
    )
    return Drawing("power_over_time", "Power over time", panels.figure, pd.concat(parts), caption)


def _blocks(seconds: pd.Series, arms: pd.Series) -> list[tuple[float, float]]:
    """Begin and end of the stretches of the method's arm."""
    spans = seconds[arms == "method"].groupby((arms != arms.shift()).cumsum()).agg(["first", "last"])
    return list(spans.itertuples(index=False, name=None))


def energy_against_speed(frames: Frames, group: Group, comparisons: Sequence[Comparison]) -> Drawing | None:
    """Joules per token against speed-up, one panel per data set; the front of what nothing beats in both is drawn."""
    rows = []
    name = str(group.conditions.get("baseline"))
    baseline = {"label": f"{name} (baseline)", "method": name, "ranked": True, "speedup": 1.0}
    for m in members(*comparisons):
        if m.speedup is None or m.energy.get("joules_per_token") is None:
            continue
        own = {
            "label": str(m.facts["label"]),
            "method": str(m.facts["method"]),
            "ranked": is_ranked(m.facts),
            "speedup": m.speedup.value,
        }
        for arm, of in ((own | {"low": m.speedup.low, "high": m.speedup.high}, ""), (baseline, "baseline_")):
            joules = m.energy.get(f"{of}joules_per_token")
            if joules is not None:
                blocks = m.energy.get(f"{of}joules_per_token_by_block") or [np.nan]
                spent = {"joules_per_token": joules, "joules_low": min(blocks), "joules_high": max(blocks)}
                rows.append({"pair": m.comparison.pair, "data": m.comparison.data} | arm | spent)
    if not rows:
        return None
    frame = pd.DataFrame(rows)
    cells = list(frame.groupby(["pair", "data"], sort=False))
    styles = looks(frame["label"], frame["method"]) | {baseline["label"]: look(name)}
    with styled():
        panels = new_panels(len(cells), across=3, top=0.7, each=2.5, sharey=True)
        for axis, ((pair, data), own) in zip(panels.axes, cells, strict=True):
            for point in own.itertuples():
                style = styles[point.label] | {"linestyle": ""}
                style["markerfacecolor"] = style["color"] if point.ranked else "white"
                across = errors([point.speedup], [point.low], [point.high])
                upright = errors([point.joules_per_token], [point.joules_low], [point.joules_high])
                axis.errorbar([point.speedup], [point.joules_per_token], xerr=across, yerr=upright, label=point.label, **style)
            front = _front(own[own["ranked"]])
            axis.plot(
                front["speedup"], front["joules_per_token"], drawstyle="steps-pre", color="#8C8C8C", linewidth=0.9, zorder=0
            )
            axis.set_title(f"{data}\n{pair}" if frame["pair"].nunique() > 1 else str(data), fontsize=8)
            axis.set(xlabel="speed-up", ylim=(0, 1.08 * frame[["joules_per_token", "joules_high"]].max().max()))
        for axis in panels.left:
            axis.set_ylabel("joules per token (gross)")
        legend_below(panels.figure)
    caption = (
        "Gross energy per output token against speed-up; lower right is better. Horizontal bars: 95 % interval over prompts; "
        "vertical bars: span of the energy pass's blocks, no interval. Grey: the front that no ranked run beats in both. "
        "Devices that wait are charged too. "
        f"{setting(group.conditions, comparisons)}"
    )
    return Drawing("energy_against_speed", "Energy against speed", panels.figure, frame, caption)


def _front(frame: pd.DataFrame) -> pd.DataFrame:
    """Points that no other point beats in both: fastest first, then ever less energy."""
    ordered = frame.sort_values(["speedup", "joules_per_token"], ascending=[False, True])
    least = ordered["joules_per_token"].cummin()
    return ordered[(ordered["joules_per_token"] <= least) & ~least.duplicated()].sort_values("speedup")
