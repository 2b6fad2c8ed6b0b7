"""AMUSD's table (McDanel 2024, 2410.17375) beside ours, with the paper's boundaries and with equal ones; its figure 5.

The published table mixes three boundaries (as the published code measures): autoregressive decoding is timed with its prefill,
speculative decoding without either prefill and with a handicapped draft (`compat=amusd`), AMUSD with its prefill; all divide by
all output tokens. Here both are made from the same runs: `paper_rates` counts as the paper does, the other columns as all of
this project's tables. What cannot be had from warm runs is left out and said: the paper's cold start.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from specbench.analysis.derive.derive import RESAMPLES, Comparison, Estimate, is_ranked, strata_of
from specbench.analysis.derive.families import BASELINE, Family, cells_of, families, find_run, options
from specbench.analysis.read.frames import Frames
from specbench.analysis.reports import reference
from specbench.analysis.show import check_tables, figures_power, figures_speed
from specbench.analysis.show.captions import definitions, setting, verdict_text
from specbench.analysis.show.document import Document
from specbench.analysis.show.paper_tables import cell, number
from specbench.analysis.show.table import Cell, Column, Row, Table
from specbench.measure import stats
from specbench.measure.pairing import ArmTimes, FloatArray, PairedTimes

TITLE = "AMUSD's paper: autoregressive, speculative and asynchronous decoding"
SOURCE = "AMUSD"  # what the reference file's sources begin with
BOUNDARIES = (
    "Paper's boundaries: autoregressive and AMUSD timed from before the prefill, speculative decoding from after both prefills "
    "and with a draft that never sees the bonus token (compat=amusd); each divided by all output tokens. The published "
    "figures also hold each method's cold start, which warm runs do not have, and AMUSD's second prefill of the draft."
)


def fill(doc: Document, frames: Frames) -> Table:
    """One table per machine and state of the code; the power figure, or why there is none. Raises ValueError without AMUSD."""
    found = families(frames, BASELINE)
    made = [(family, paper_table(frames, family)) for family in found]
    made = [(family, table) for family, table in made if len(table)]
    if not made:
        raise ValueError("no run of amusd or speculative over autoregressive decoding: the paper's table needs one")
    for family, table in made:
        doc.heading("The paper's table" if family.number == 1 else f"The paper's table, conditions {family.number}")
        doc.add(table)
        group = family.group_where(baseline="autoregressive")
        forest = figures_speed.forest(frames, group, list(cells_of(frames, group).values())) if group is not None else None
        if forest is not None:
            forest.name = family.table_name(forest.name)
            doc.add(forest)
    doc.heading("Power and energy (the paper's figure 5)")
    drawn = False
    for family, _ in made:
        for group in family.groups:
            cells = list(cells_of(frames, group).values())
            drawing = figures_power.power_over_time(frames, group, cells) if cells else None
            if drawing is not None:
                drawing.name = f"power_over_time_{family.number}_{group.number}" if drawn else drawing.name
                doc.add(drawing)
                drawn = True
    if not drawn:
        doc.text(f"No figure: no run holds a power trace. {check_tables.why_no_energy(frames)}")
    doc.add(power_table(frames, made[0][0]))
    return made[0][1]


# ---------------------------------------------------------------------------------------------------- the table
def paper_table(frames: Frames, family: Family) -> Table:
    """Data set and method down; ms/token and speed-up with both boundaries, AMUSD over speculative, and the published ones."""
    over_ar = cells_of(frames, family.group_where(baseline="autoregressive"))
    over_sd = [cells_of(frames, g) for g in family.groups if g.conditions.get("baseline") == "speculative"]
    published = reference.load()
    rows: list[Row] = []
    shown: list[Comparison] = []
    missing: list[str] = []
    for (pair, data), comparison in over_ar.items():
        runs = {
            "speculative": find_run(frames, comparison, "speculative", compat=None),
            "handicapped": find_run(frames, comparison, "speculative", compat="amusd"),
            "amusd": find_run(frames, comparison, "amusd"),
        }
        if all(run is None for run in runs.values()):
            continue
        shown.append(comparison)
        direct = {
            compat: next(
                (
                    (c[pair, data], run)
                    for c in over_sd
                    if (run := find_run(frames, c.get((pair, data)), "amusd")) is not None
                    and options(frames.facts[run], "baseline").get("compat") == compat
                ),
                None,
            )
            for compat in (None, "amusd")
        }
        names = {"speculative": "speculative", "handicapped": "speculative (compat=amusd)", "amusd": "amusd"}
        absent = [names[name] for name, run in runs.items() if run is None]
        absent += [f"amusd over {names['handicapped' if compat else 'speculative']}" for compat in direct if not direct[compat]]
        if absent:
            missing.append(f"{data}: no run of {', '.join(absent)}")
        own = _rows(comparison, runs, direct)
        for method, row in own.items():
            row.cells |= _published(published, method, data)
        rows += own.values()
    columns = [
        Column("data", "data", merge=True, text=True),
        Column("method", "method", text=True),
        Column("ms_per_token", "ms/token", "equal boundaries"),
        Column("speedup", "speed-up", "equal boundaries"),
        Column("over_speculative", "over speculative", "equal boundaries"),
        Column("paper_ms_per_token", "ms/token", "paper's boundaries"),
        Column("paper_speedup", "speed-up", "paper's boundaries"),
        Column("paper_over_speculative", "over speculative", "paper's boundaries"),
        Column("lossless", "lossless", text=True),
        Column("published_ms_per_token", "ms/token", "published, other hardware and models"),
        Column("published_speedup", "speed-up", "published, other hardware and models"),
        Column("published_over_speculative", "over speculative", "published, other hardware and models"),
    ]
    standins = [c.data for c in shown if c.data.endswith("-standin")]
    notes = [f"Published figures are for the sets themselves, ours for other prompts: {', '.join(standins)}."][: len(standins)]
    return Table(
        family.table_name("amusd_paper"),
        "AMUSD's table, ours beside the published one",
        columns,
        rows,
        (setting(over_ar_conditions(family), shown) + " " if shown else "")
        + "Equal boundaries: decoding alone, prefill excluded, for every method. "
        + definitions("ms_per_token", "speedup")
        + " Over speculative: AMUSD with speculative decoding as the baseline of the same run, same interval. "
        + BOUNDARIES
        + " Brackets there: 95 % paired bootstrap over prompts. Every run measures its own baseline; where they differ the "
        "autoregressive row shows their span. "
        + definitions("lossless")
        + f" Published: {', '.join(dict.fromkeys(published_sources(published)))}; nothing is ranked against it.",
        [*notes, *missing, *(note for c in shown for note in c.notes)],
    ).drop_empty_columns()  # fmt: skip


def over_ar_conditions(family: Family) -> Mapping[str, Any]:
    group = family.group_where(baseline="autoregressive")
    return {} if group is None else group.conditions


Direct = Mapping[str | None, tuple[Comparison, int] | None]


def _rows(comparison: Comparison, runs: Mapping[str, int | None], direct: Direct) -> dict[str, Row]:
    """The three rows of a data set, by method."""
    known = [run for run in runs.values() if run is not None]
    data = Cell(comparison.data)
    rates = [rate for run in known if (rate := comparison.rates(run)[1])]
    whole = [1e3 / paper_rate(comparison.pairs(run).baseline, True) for run in known if len(comparison.pairs(run))]
    made = {
        "autoregressive": Row(
            {
                "data": data,
                "method": Cell("autoregressive"),
                "ms_per_token": _span([1e3 / rate for rate in rates]),
                "speedup": number(1.0),
                "paper_ms_per_token": _span(whole),
                "paper_speedup": number(1.0),
            },
            ranked=False,
        )
    }
    for method, equal, paper, with_prefill in (
        ("speculative", runs["speculative"], runs["handicapped"], False),
        ("amusd", runs["amusd"], runs["amusd"], True),
    ):
        if equal is None and paper is None:
            continue
        cells = {"data": data, "method": Cell(method)}
        if equal is not None:
            rate, facts = comparison.rates(equal)[0], comparison.runs.loc[equal]
            cells["ms_per_token"] = number(1e3 / rate if rate else None)
            cells["speedup"] = cell(comparison.speedup(equal))
            cells["lossless"] = Cell(verdict_text(facts) + ("" if is_ranked(facts) else " (not ranked)"))
        if paper is not None and len(pairs := comparison.pairs(paper)):
            cells["paper_ms_per_token"] = number(1e3 / paper_rate(pairs.method, with_prefill))
            cells["paper_speedup"] = cell(paper_speedup(pairs, with_prefill, True))
        made[method] = Row(cells, ranked=False)
    if "amusd" in made:
        equal_run, paper_run = direct[None], direct["amusd"]
        if equal_run is not None:
            made["amusd"].cells["over_speculative"] = cell(equal_run[0].speedup(equal_run[1]))
        if paper_run is not None and len(pairs := paper_run[0].pairs(paper_run[1])):
            made["amusd"].cells["paper_over_speculative"] = cell(paper_speedup(pairs, True, False))
    return made


def _span(values: list[float]) -> Cell:
    """One value, or from where to where several runs measured the same thing."""
    if not values:
        return Cell(None)
    ends = f"{min(values):.2f}", f"{max(values):.2f}"
    return number(values[0]) if ends[0] == ends[1] else Cell(f"{ends[0]} to {ends[1]}")


# ---------------------------------------------------------------------------------------------------- the paper's boundaries
def paper_columns(times: ArmTimes, with_prefill: bool) -> FloatArray:
    """[P, 2]: output tokens (the prefill's included) and seconds, with or without prefill; medians over repeats."""
    seconds = times.decode_seconds + (times.prefill_seconds if with_prefill else 0.0)
    tokens = np.nanmedian(times.output_tokens, axis=1)
    return np.column_stack([tokens, tokens * np.nanmedian(seconds / times.output_tokens, axis=1)])


def paper_rate(times: ArmTimes, with_prefill: bool) -> float:
    """Tokens/s of an arm in the paper's counting."""
    tokens, seconds = paper_columns(times, with_prefill).sum(0)
    return float(tokens / seconds)


def paper_speedup(pairs: PairedTimes, method_prefill: bool, baseline_prefill: bool) -> Estimate:
    """Ratio of the arms' tokens/s, each with the boundary that the paper gives it; interval over prompts."""
    columns = np.hstack([paper_columns(pairs.method, method_prefill), paper_columns(pairs.baseline, baseline_prefill)])
    total = columns.sum(0)
    interval = stats.ratio_intervals(columns, np.random.default_rng(0), strata_of(pairs), RESAMPLES)[0]
    return Estimate(float((total[0] / total[1]) / (total[2] / total[3])), *(interval or (None, None)))


# ---------------------------------------------------------------------------------------------------- published
def _of_paper(published: pd.DataFrame) -> pd.DataFrame:
    return published[published["source"].str.startswith(SOURCE)]


def published_sources(published: pd.DataFrame) -> list[str]:
    return list(_of_paper(published)["source"])


def _published(published: pd.DataFrame, method: str, data: str) -> dict[str, Cell]:
    """The paper's README row; AMUSD over speculative from its two times."""

    def value(metric: str, of: str) -> float | None:
        rows = reference.matching(_of_paper(published), of, data)
        rows = rows[(rows["metric"] == metric) & (rows["kind"] == "readme")]
        return None if rows.empty else float(rows["value"].iloc[0])

    time, speculative = value("ms_per_token", method), value("ms_per_token", "speculative")
    speedup = 1.0 if method == "autoregressive" and time else value("speedup", method)
    over = speculative / time if method == "amusd" and time and speculative else None
    return {
        "published_ms_per_token": number(time),
        "published_speedup": number(speedup),
        "published_over_speculative": number(over),
    }


# ---------------------------------------------------------------------------------------------------- power
def power_table(frames: Frames, family: Family) -> Table:
    """Mean watts by device and joules per token as in figure 5: our rows with a reading, then the published ones."""
    rows: list[Row] = []
    for group in family.groups:
        for run, facts in group.runs.iterrows():
            energy = frames.summaries[run].get("energy") or {}
            arms = [(str(facts["label"]), "")]
            arms += [("autoregressive", "baseline_")] if group.conditions.get("baseline") == "autoregressive" else []
            for label, prefix in arms:
                seconds, roles = energy.get(f"{prefix}seconds"), energy.get(f"{prefix}joules_by_role") or {}
                if not seconds or energy.get(f"{prefix}joules_per_token") is None:
                    continue
                cells = {"origin": Cell("measured"), "data": Cell(str(facts["data_label"])), "method": Cell(label)}
                cells |= {f"watts_{role}": number(joules / seconds, 1) for role, joules in roles.items()}
                cells["joules_per_token"] = number(energy[f"{prefix}joules_per_token"])
                rows.append(Row(cells | {"source": Cell(str(energy.get("source")))}, ranked=False))
    measured = len(rows)
    published = _of_paper(reference.load())
    published = published[published["metric"].isin(["watts_target", "watts_draft", "joules_per_token"])]
    for (method, data), values in published.groupby(["method", "dataset"], sort=False):
        cells = {"origin": Cell("published, other hardware"), "data": Cell(str(data)), "method": Cell(str(method))}
        cells |= {str(v["metric"]): number(float(v["value"])) for _, v in values.iterrows()}
        rows.append(Row(cells | {"source": Cell(str(values["source"].iloc[0]))}, ranked=False))
    columns = [
        Column("origin", "origin", merge=True, text=True),
        Column("data", "data", text=True),
        Column("method", "method", text=True),
        Column("watts_target", "target's device", "mean watts"),
        Column("watts_draft", "draft's device", "mean watts"),
        Column("joules_per_token", "J/token"),
        Column("source", "source", text=True),
    ]
    notes = [] if measured else [f"No measured row. {check_tables.why_no_energy(frames)}"]
    return Table(
        "amusd_power",
        "Mean power by device and energy per token",
        columns,
        rows,
        "Joules over seconds of the energy pass by device (an idle device is charged too), gross joules per output token. "
        "Published: one prompt of RefactorChat, mean power x total time, both devices charged; other hardware, never ranked.",
        notes,
    ).drop_empty_columns()  # fmt: skip
