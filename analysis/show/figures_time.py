"""Figures about time: tokens over time, where the time goes, and two-lane timelines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.patches import Patch

from specbench.analysis.derive.conditions import Group
from specbench.analysis.derive.derive import Comparison
from specbench.analysis.derive.ranking import fastest
from specbench.analysis.read.frames import Frames
from specbench.analysis.show.style import COLOURS, Drawing, filled, legend_below, look, looks, new_figure, styled
from specbench.measure.records import store
from specbench.measure.records.events import PARTS

MAX_METHODS = 7
FILLS = {"draft": 4, "verify": 2, "wait": 7, "learn": 1, "other": 3}  # by what the target's process did; as in LANE_FILLS
WORKER_PARTS = {"draft": ("drafting, kept", 4), "discarded_draft": ("drafting, thrown away", 5), "idle": ("idle", 6)}
TIMELINE_ROUNDS = 14


def _fastest(comparison: Comparison, limit: int = MAX_METHODS) -> pd.DataFrame:
    """The fastest paired runs, in the table's order."""
    return fastest(comparison.runs[comparison.runs["speedup"].notna()], limit)


# ---------------------------------------------------------------------------------------------------- tokens over time
def tokens_over_time(frames: Frames, group: Group, comparison: Comparison) -> Drawing | None:
    """Tokens emitted against time since the end of prefill, for the prompt of median length, all repeats."""
    runs = _fastest(comparison)
    if runs.empty or not comparison.prompts:
        return None
    first = frames.samples_of(runs.index[0])
    common = first[(first["arm"] == "baseline") & first["sample_id"].isin(comparison.prompts)]
    lengths = common.groupby("sample_id")["num_emitted"].sum()
    prompt = str(lengths.sort_values().index[len(lengths) // 2])
    parts: list[pd.DataFrame] = []
    with styled():
        figure, axes = new_figure(height=3.2)
        axis = axes[0, 0]
        baseline = str(group.conditions.get("baseline"))
        curves = [(runs.index[0], "baseline", f"{baseline} (baseline of the first run)")]
        curves += [(run, "method", str(facts["label"])) for run, facts in runs.iterrows()]
        styles = looks(map(str, runs["label"]), map(str, runs["method"])) | {curves[0][2]: look(baseline) | {"linestyle": "-"}}
        for run, arm, label in curves:
            table = frames.table(run, arm, [prompt])
            for at, key in enumerate(table.keys):
                if key[1] != min(k[1] for k in table.keys):
                    continue  # the first turn: later ones have clocks of their own
                mine = table.sample == at
                seconds = np.r_[0.0, table.t_end[mine]]
                tokens = 1 + np.r_[0, np.cumsum(table.num_emitted[mine])]
                style = styles[label] | {"linestyle": "-"}  # dashes and steps make a muddle: markers tell the lines apart
                style |= {"marker": "", "alpha": 0.5} if key[2] else {"markevery": max(1, len(seconds) // 6)}
                width = 1.2 if key[2] == 0 else 0.5
                axis.step(seconds, tokens, where="post", linewidth=width, label=label if key[2] == 0 else None, **style)
                parts.append(pd.DataFrame({"method": label, "repeat": key[2], "seconds": seconds, "tokens": tokens}))
        axis.set(xlabel="seconds since the end of prefill", ylabel="tokens emitted")
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
        legend_below(figure)
    caption = (
        f"Tokens emitted over time for one prompt ({prompt}, of median length), every step a round; thin: further repeats."
    )
    return Drawing.of_cell("tokens_over_time", "Tokens over time", figure, pd.concat(parts), caption, group, comparison)


# ---------------------------------------------------------------------------------------------------- where the time goes
def where_time_goes(frames: Frames, group: Group, comparison: Comparison) -> Drawing | None:
    """Milliseconds per token of the target's process, parted; what a draft process did meanwhile in a bar below."""
    runs = _fastest(comparison, limit=12)
    if runs.empty:
        return None
    rows = _time_rows(comparison, runs, str(group.conditions.get("baseline")))
    frame = pd.DataFrame(rows)
    parts = {name: (name, fill) for name, fill in FILLS.items() if f"{name}_ms" in frame and frame[f"{name}_ms"].any()}
    with styled():
        figure, axes = new_figure(height=0.9 + 0.34 * len(rows) + 0.3)
        axis = axes[0, 0]
        for y, row in enumerate(rows):
            thin = row["process"] == "draft"
            left = 0.0
            for name, (_, fill) in (WORKER_PARTS if thin else parts).items():
                value = row[f"{name}_ms"]
                axis.barh(y - 0.2 if thin else y, value, height=0.36 if thin else 0.72, left=left, **filled(fill))
                left += value
        axis.set_yticks(range(len(rows)), [row["label"] if row["process"] == "target" else "its draft process" for row in rows])
        for tick, row in zip(axis.get_yticklabels(), rows, strict=True):
            tick.set_fontstyle("normal" if row["process"] == "target" else "italic")
        axis.invert_yaxis()
        axis.set_xlabel("ms per emitted token (decode)")
        axis.grid(axis="y", visible=False)
        shown = [*parts.values(), *(WORKER_PARTS.values() if "draft" in set(frame["process"]) else ())]
        legend_below(figure, {name: Patch(**filled(fill)) for name, fill in shown})
    caption = (
        "Time per emitted token of the process that owns the target: drafting, verifying, waiting for another process, and the "
        "rest (sampling, bookkeeping); they sum to the decode time. Narrow bars: what a draft process did at the same time. "
        "Totals over all repeats, no intervals: the speed-ups carry them."
        f"{' learn: changing the draft between rounds.' if 'learn' in parts else ''}"
    )
    return Drawing.of_cell("where_time_goes", "Where the time goes", figure, frame, caption, group, comparison)


def _time_rows(comparison: Comparison, runs: pd.DataFrame, baseline: str) -> list[dict[str, Any]]:
    """A row per process: `label`, `process` (target or draft) and `<part>_ms` per token; `learn` where a draft learnt."""
    frames, rows = comparison.frames, []
    arms = [(runs.index[0], "baseline", f"{baseline} (baseline)")]
    arms += [(run, "method", str(facts["label"])) for run, facts in runs.iterrows()]
    for run, arm, label in arms:
        own, table = frames.finished(run, arm, comparison.only), frames.table(run, arm, comparison.only)
        tokens = float(own["num_emitted"].sum())
        spent = {name: float(table.columns[f"{name}_seconds"].sum()) for name in PARTS}
        spent["other"] = max(0.0, float(own["decode_seconds"].sum()) - sum(spent.values()))
        rows.append({"label": label, "process": "target"} | {f"{name}_ms": 1e3 * s / tokens for name, s in spent.items()})
        if own["concurrent_draft"].notna().any():
            worker = {f"{name}_ms": 1e3 * own[f"concurrent_{name}"].sum() / tokens for name in WORKER_PARTS}
            rows.append({"label": label, "process": "draft", **worker})
    learnt = any(row.get("learn_ms") for row in rows)
    return [{name: value for name, value in row.items() if learnt or name != "learn_ms"} for row in rows]


# ---------------------------------------------------------------------------------------------------- timelines
def timelines(frames: Frames, group: Group, comparison: Comparison) -> Drawing | None:
    """Two lanes per method, target and draft, over the first rounds of one prompt; rollbacks as marks."""
    runs = _fastest(comparison)
    if runs.empty or not comparison.prompts:
        return None
    prompt = comparison.prompts[0]
    lanes = [(str(facts["label"]), *_lanes(frames, run, prompt)) for run, facts in runs.iterrows()]
    end = max(lane[-1] for lane in lanes)
    parts = []
    used: dict[str, int] = {}
    with styled():
        figure, axes = new_figure(len(lanes), 1, height=0.7 + 0.95 * len(lanes), sharex=True)
        for axis, (label, spans, marks, _) in zip(axes[:, 0], lanes, strict=True):
            for lane, name, begin, until in spans:
                fill = LANE_FILLS[name]
                used.setdefault(name, fill)
                axis.barh(lane, 1e3 * (until - begin), left=1e3 * begin, height=0.72, **_look(fill))
            axis.plot([1e3 * mark for mark in marks], [1.58] * len(marks), **_MARK)
            axis.set_yticks([0, 1], ["target", "draft"])
            axis.set_ylim(1.75, -0.5)
            axis.set_title(label, loc="left", fontsize=8, pad=2)
            axis.grid(axis="y", visible=False)
            parts.append(pd.DataFrame(spans, columns=["lane", "part", "start_seconds", "end_seconds"]).assign(method=label))
        axes[-1, 0].set(xlim=(0, 1e3 * end), xlabel="ms since the end of prefill")
        handles = {name: Patch(**_look(fill)) for name, fill in used.items()}
        legend_below(figure, handles | {"rollback": axes[0, 0].plot([], [], **_MARK)[0]})
    fewer = (
        f" The fastest {len(runs)} of {len(comparison.runs)}, ranked ones first." if len(runs) < len(comparison.runs) else ""
    )
    unknown = " Light lane: the draft's process ran freely; its spans were not recorded (measure.trace=true records them)."
    caption = (
        f"The first {TIMELINE_ROUNDS} rounds of {prompt}, repeat 0. Within a round the records hold how long the target's "
        "process drafted, waited and verified, not in which order: drawn in this one."
        f"{fewer}{unknown if UNKNOWN in used else ''}"
    )
    return Drawing.of_cell("timelines", "Timelines", figure, pd.concat(parts), caption, group, comparison)


_MARK: Any = {"marker": "^", "color": COLOURS[0], "linestyle": "", "markersize": 4}
UNKNOWN = "draft process, spans not recorded"
LANE_FILLS = {"verify": 2, "wait": 7, "draft": 4, "discarded draft": 5, "idle": 6, "learn": 1, UNKNOWN: -1}


def _look(fill: int) -> dict[str, Any]:
    return filled(fill) if fill >= 0 else {"facecolor": "#F2F2F2", "edgecolor": "#AAAAAA", "linewidth": 0.8}


def _lanes(frames: Frames, run: int, prompt: str) -> tuple[list[tuple[int, str, float, float]], list[float], float]:
    """Spans (lane 0 target, 1 draft; part; start; end), times of rollbacks, and the end of the last round shown."""
    table = frames.table(run, "method", [prompt])
    key = min(table.keys, key=lambda key: (key[2], key[1]))
    mine = np.flatnonzero(table.sample == table.keys.index(key))[:TIMELINE_ROUNDS]
    spans: list[tuple[int, str, float, float]] = []
    marks: list[float] = []
    for i in mine:
        at = float(table.t_start[i])
        for lane, part in ((1, "draft"), (0, "wait"), (0, "verify"), (1, "learn")):
            until = at + float(table.columns[f"{part}_seconds"][i])
            if until > at:
                spans.append((lane, part, at, until))
                at = until
        if table.num_discarded[i] > 0:
            marks.append(float(table.t_end[i]))
    end = float(table.t_end[mine[-1]])
    if not np.isnan(frames.runs.at[run, "concurrent_draft"]):
        records = (r for r in store.read_samples(frames.runs.at[run, "folder"]) if r.key == key)
        recorded = [(a, min(b, end), name.replace("_", " ")) for r in records for a, b, name in r.spans if a < end]
        spans += [(1, name, a, b) for a, b, name in recorded] or [(1, UNKNOWN, 0.0, end)]
    return spans, marks, end
