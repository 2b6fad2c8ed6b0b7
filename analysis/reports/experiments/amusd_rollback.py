"""AMUSD's open question 1: how often and how deep asynchronous drafts are rolled back, and what that costs, by data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from specbench.analysis.derive.derive import Comparison, Estimate, is_ranked
from specbench.analysis.derive.families import TEMPERATURE, Family, cells_of, families
from specbench.analysis.derive.rollback_counts import Rollbacks, rollbacks_of
from specbench.analysis.read.frames import Frames
from specbench.analysis.show.captions import definitions, setting, verdict_text
from specbench.analysis.show.document import Document
from specbench.analysis.show.figures_rounds import drafting_runs
from specbench.analysis.show.paper_tables import cell, number
from specbench.analysis.show.style import Drawing, errors, legend_below, legend_of, new_figure, series, styled
from specbench.analysis.show.table import Cell, Column, Row, Table

TITLE = "Rollbacks of asynchronous drafting"
MIN_ROLLBACKS = 20  # a distribution of fewer is not drawn
WORDS = (
    "Rollback: a round because of which drafted tokens were thrown away; depth: how many tokens a rollback threw away. Stale: "
    "rounds whose published draft stood on a prefix that the target had left. Drafting thrown away: the draft's time for those "
    "tokens; with a process of its own it runs beside the target, otherwise (speculative) on the target's path. Extra wait: "
    "the target's wait for drafts in the round after a rollback over its wait in other rounds; % is of the decode time. "
    "Brackets: 95 % bootstrap interval over prompts."
)


def fill(doc: Document, frames: Frames) -> Table:
    """A table and two figures per machine and state of the code. Raises ValueError if no run drafted anything."""
    found = [(family, rows_of(frames, family)) for family in families(frames, TEMPERATURE)]
    found = [(family, rows) for family, rows in found if rows]
    if not found:
        raise ValueError("no run drafted anything: there is nothing to roll back")
    tables = []
    for family, rows in found:
        doc.heading("Rollbacks by data set" if family.number == 1 else f"Rollbacks by data set, conditions {family.number}")
        tables.append(table_of(family, rows))
        doc.add(tables[-1])
        doc.add(cost_figure(family, rows))
        doc.add(depth_figure(family, rows))
    return tables[0]


class Line:
    """One run: its place in the table and its figures."""

    def __init__(self, comparison: Comparison, run: int, label: str, temperature: float, conditions: dict[str, Any]):
        self.comparison, self.run, self.conditions = comparison, run, conditions
        self.data, self.pair, self.facts = comparison.data, comparison.pair, comparison.runs.loc[run]
        self.label = f"{_short(label)}, T={temperature:g}" if temperature else _short(label)
        self.counts: Rollbacks = rollbacks_of(comparison, run)


def _short(label: str) -> str:
    """The label of a run without AMUSD's default, so that it reads the same in every group of the family."""
    name, _, tags = label.partition(" (")
    kept = [tag for tag in tags.removesuffix(")").split(", ") if tag not in ("", "stale=plain")]
    return f"{name} ({', '.join(kept)})" if kept else name


def rows_of(frames: Frames, family: Family) -> list[Line]:
    """The drafting runs of a family, by data set, greedy ones first."""
    lines = []
    for group in sorted(family.groups, key=lambda g: g.conditions.get("decoding.temperature") or 0.0):
        for comparison in cells_of(frames, group).values():
            temperature = float(group.conditions.get("decoding.temperature") or 0.0)
            lines += [Line(comparison, run, label, temperature, group.conditions) for run, label in drafting_runs(comparison)]
    order = list(dict.fromkeys(line.data for line in lines))
    return sorted(lines, key=lambda line: order.index(line.data))


def table_of(family: Family, lines: Sequence[Line]) -> Table:
    rows = []
    for line in lines:
        counts, facts = line.counts, line.facts
        compared = facts["compared"] == facts["compared"] and facts["compared"]
        cells = {
            "data": Cell(line.data),
            "method": Cell(line.label + ("" if is_ranked(facts) else " (not ranked)")),
            "rollbacks_per_100": cell(counts.per_100_tokens, 1),
            "share_percent": cell(_scaled(counts.share_of_rounds, 100), 0),
            "depth": cell(counts.depth, 1),
            "largest": number(counts.largest, 0),
            "discarded_per_100": cell(counts.discarded_per_100, 0),
            "stale_per_100": cell(counts.stale_per_100, 1),
            "thrown_ms_per_token": cell(counts.thrown_ms_per_token),
            "extra_wait_ms": cell(counts.extra_wait_ms),
            "wait_percent": cell(counts.wait_percent, 1),
            "speedup": cell(line.comparison.speedup(line.run)),
            "lossless": Cell(
                verdict_text(facts)
                + (f" ({int(facts['identical'])}/{int(compared)})" if facts["verdict"] == "identical" else "")
            ),
        }
        rows.append(Row(cells, ranked=False))
    columns = [
        Column("data", "data", merge=True, text=True),
        Column("method", "method", text=True),
        Column("rollbacks_per_100", "per 100 tokens", "rollbacks"),
        Column("share_percent", "% of rounds", "rollbacks"),
        Column("depth", "mean", "depth in tokens"),
        Column("largest", "largest", "depth in tokens"),
        Column("discarded_per_100", "thrown away per 100", "tokens"),
        Column("stale_per_100", "stale rounds per 100", "tokens"),
        Column("thrown_ms_per_token", "drafting thrown away, ms/token", "time"),
        Column("extra_wait_ms", "extra wait per rollback, ms", "time"),
        Column("wait_percent", "% of decode time", "time"),
        Column("speedup", "speed-up"),
        Column("lossless", "output", text=True),
    ]
    temperatures = {line.conditions.get("decoding.temperature") or 0.0 for line in lines}
    law = "" if len(temperatures) < 2 else " Rows with T are sampled and have baselines of their own."
    return Table(
        family.table_name("amusd_rollback"),
        "Rollbacks: frequency, depth, cost, and the output under them",
        columns,
        rows,
        f"{WORDS} {definitions('speedup', 'lossless')}{law} " + _setting(lines),
        list(dict.fromkeys(note for line in lines for note in line.comparison.notes)),
    ).drop_empty_columns()


def _scaled(estimate: Estimate | None, scale: float) -> Estimate | None:
    if estimate is None:
        return None
    ends = (None if end is None else scale * end for end in (estimate.low, estimate.high))
    return Estimate(scale * estimate.value, *ends)


def _setting(lines: Sequence[Line]) -> str:
    """n, law and hardware of the first setting's rows: the others differ in temperature alone."""
    first = lines[0].conditions
    cells = {id(line.comparison): line.comparison for line in lines if line.conditions is first}
    return setting(first, list(cells.values()))


# ---------------------------------------------------------------------------------------------------- figures
def cost_figure(family: Family, lines: Sequence[Line]) -> Drawing:
    """Three panels over the same rows: rollbacks per 100 tokens, drafting thrown away, the target's extra wait."""
    panels = (
        ("per_100_tokens", "rollbacks per\n100 tokens"),
        ("thrown_percent", "drafting thrown away,\n% of decode time"),
        ("wait_percent", "target's extra wait,\n% of decode time"),
    )
    labels = list(dict.fromkeys(line.label for line in lines))
    data = list(dict.fromkeys(line.data for line in lines))
    rows, y = [], 0.0
    ticks: list[tuple[float, str]] = []
    for name in data:
        own = [line for line in lines if line.data == name]
        for line in own:
            figures: dict[str, Any] = {"data": name, "method": line.label, "y": y}
            for key, _ in panels:
                found: Estimate | None = getattr(line.counts, key)
                ends = (np.nan,) * 3 if found is None else (found.value, found.low, found.high)
                figures |= dict(zip((key, f"{key}_low", f"{key}_high"), ends, strict=True))
            rows.append(figures)
            y += 1
        ticks.append((y - (len(own) + 1) / 2, name))
        y += 0.8
    frame = pd.DataFrame(rows)
    with styled():
        figure, axes = new_figure(1, 3, height=1.1 + 0.2 * y, sharey=True)
        for axis, (key, label) in zip(axes.flat, panels, strict=True):
            for number_, method in enumerate(labels):
                own_rows = frame[(frame["method"] == method) & frame[key].notna()]
                if own_rows.empty:
                    continue
                style = series(number_) | {"linestyle": ""}
                bars = errors(own_rows[key], own_rows[f"{key}_low"], own_rows[f"{key}_high"])
                axis.errorbar(own_rows[key], own_rows["y"], xerr=bars, label=method, **style)
            axis.axvline(0.0, color="black", linewidth=0.7)
            axis.set_xlabel(label)
            axis.set_yticks([at for at, _ in ticks], [name for _, name in ticks])
            axis.tick_params(axis="y", length=0)
            axis.grid(axis="y", visible=False)
            axis.set_ylim(y - 0.3, -0.8)
        legend_below(figure, *legend_of(axes))
    return Drawing(
        family.table_name("rollback_cost"), "What rollbacks cost", figure, frame.drop(columns="y"),
        f"{WORDS} The two costs in time fall on different processes and do not add up. " + _setting(lines),
    )  # fmt: skip


def depth_figure(family: Family, lines: Sequence[Line]) -> Drawing | None:
    """Share of rollbacks that throw away at least k tokens, one panel per data set."""
    parts = []
    for line in lines:
        depth = line.comparison.rounds(line.run).num_discarded
        depth = depth[depth > 0]
        if len(depth) >= MIN_ROLLBACKS:
            at_least = np.arange(1, int(depth.max()) + 1)
            share = [float(np.mean(depth >= k)) for k in at_least]
            parts.append(
                pd.DataFrame({"data": line.data, "method": line.label, "depth": at_least, "share": share, "n": len(depth)})
            )
    if not parts:
        return None
    frame = pd.concat(parts, ignore_index=True)
    data, labels = list(dict.fromkeys(frame["data"])), list(dict.fromkeys(line.label for line in lines))
    columns = min(2, len(data))
    height = -(-len(data) // columns)
    with styled():
        figure, axes = new_figure(height, columns, height=0.8 + 2.0 * height, sharex=True, sharey=True)
        for axis, name in zip(axes.flat, data, strict=False):
            for method, own in frame[frame["data"] == name].groupby("method", sort=False):
                style = series(labels.index(str(method))) | {"markevery": max(1, len(own) // 8)}
                axis.plot(own["depth"], own["share"], label=method, **style)
            axis.set_title(name)
            axis.set_ylim(0, 1.04)
        for axis in axes.flat[len(data) :]:
            axis.remove()
        for column in range(columns):
            last = [axes[row, column] for row in range(height) if row * columns + column < len(data)][-1]
            last.set_xlabel("depth k in tokens")
            last.xaxis.set_tick_params(labelbottom=True)
        for axis in axes[:, 0]:
            axis.set_ylabel("share of rollbacks ≥ k")
        legend_below(figure, *legend_of(axes))
    return Drawing(
        family.table_name("rollback_depth"), "How deep rollbacks are", figure, frame,
        f"Share of rollbacks that throw away at least k drafted tokens. Runs with fewer than {MIN_ROLLBACKS} rollbacks are not "
        "drawn. " + _setting(lines),
    )  # fmt: skip
