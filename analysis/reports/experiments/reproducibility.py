"""The same run under other thread counts, number formats, devices, orders: what moves and what does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from specbench.analysis.derive.derive import Estimate
from specbench.analysis.derive.repetitions import (
    Moved,
    Recorded,
    configuration_of,
    label_of,
    method_of,
    moved,
    rank,
    varying,
    work_of,
)
from specbench.analysis.read.frames import Frames
from specbench.analysis.show.captions import repeats_text, verdict_text
from specbench.analysis.show.document import Document
from specbench.analysis.show.paper_tables import cell, number
from specbench.analysis.show.style import COLOURS, Drawing, legend_below, legend_of, new_figure, series, styled
from specbench.analysis.show.table import Cell, Column, Row, Table

TITLE = "Reproducibility"
USES_REPETITIONS = True  # runs that differ in the order of the arms alone are no repetitions to be dropped
WORDS = (
    "The first row of each part is the reference. Same output: outputs equal, id for id, to the reference's first repeat (in "
    "the reference's own row: its later repeats to its first). First divergence: median position, in output tokens from 0, "
    "where they differ. Same rounds: outputs whose rounds all drafted, accepted and emitted the same numbers of tokens. "
    "Accepted per round: draft tokens kept per target forward, pooled. ms/token: decode time over decode tokens, median over "
    "repeats; spread: largest less smallest over the median, over the repeats of a run. Over reference: ms/token over the "
    "reference's. Speed-up: over the run's own baseline, ratio of totals, 95 % interval over prompts. Own verdict: the run's "
    "lossless verdict, against its own baseline under the same configuration."
)


@dataclass
class Line:
    """One configuration of one arm. recorded: one run, or for the baseline every run that measured one."""

    part: str
    label: str
    recorded: list[Recorded]
    found: Moved
    is_reference: bool
    accepted_per_round: float | None
    ms_per_token: float | None
    spread: float | None
    relative: float | None = None
    speedup: Estimate | None = None
    verdict: str = ""

    @property
    def repeats(self) -> list[float]:
        return [ms for one in self.recorded for ms in one.ms_per_token]


def fill(doc: Document, frames: Frames) -> Table:
    """A table and a figure per work. Raises ValueError where no work was done under two configurations."""
    works: dict[str, list[int]] = {}
    for run, facts in frames.facts.items():
        works.setdefault(work_of(facts), []).append(run)
    tables: list[Table] = []
    for runs in sorted(works.values(), key=len, reverse=True):
        lines = lines_of(frames, runs)
        if len({line.label for line in lines}) < 2:
            continue
        suffix = "" if not tables else f"_{len(tables) + 1}"
        data = str(frames.runs.at[runs[0], "data"])
        doc.heading(f"What moves: {data}, {frames.runs.at[runs[0], 'target']}")
        tables.append(table_of(frames, runs, lines, suffix))
        _verdict(doc, lines)
        doc.add(tables[-1])
        doc.add(figure_of(lines, suffix))
    if not tables:
        raise ValueError("no work was done under two configurations: vary engine.threads, pair.target_dtype, measure.seed ...")
    return tables[0]


def lines_of(frames: Frames, runs: Sequence[int]) -> list[Line]:
    """The baseline under every configuration, then each method, the reference first."""
    configurations = {run: configuration_of(frames.facts[run]) for run in runs}
    names = varying(configurations.values())
    order = sorted(runs, key=lambda run: (rank(configurations[run]), str(frames.facts[run].get("created_at"))))
    reference = configurations[order[0]]
    labels = {}
    for run, own in configurations.items():  # the reference by all that varies, the others by what they change
        labels[run] = label_of(own, [name for name in names if own[name] != reference[name]] or names) or "as it is"
    lines: list[Line] = []
    paired = [run for run in order if frames.own_arm(run) == "method" and not np.isnan(frames.runs.at[run, "speedup"])]
    baselines: dict[str, list[Recorded]] = {}
    for run in paired:
        baselines.setdefault(labels[run], []).append(Recorded(frames, run, "baseline"))
    if baselines:
        lines += _lines(str(frames.runs.at[paired[0], "baseline"]), baselines)
    by_method: dict[str, list[int]] = {}
    for run in order:
        by_method.setdefault(method_of(frames.facts[run]), []).append(run)
    several = list(by_method.values())
    for members in several:
        name = str(frames.runs.at[members[0], "method"])
        if sum(str(frames.runs.at[other[0], "method"]) == name for other in several) > 1:
            name += f" {frames.runs.at[members[0], 'options']}"
        found: dict[str, list[Recorded]] = {}
        for run in members:
            label = labels[run]
            while label in found:  # one configuration, run again
                label += " again"
            found[label] = [Recorded(frames, run, frames.own_arm(run))]
        made = _lines(name, found)
        for line in made:
            row = frames.runs.loc[line.recorded[0].run]
            if not np.isnan(row["speedup"]):
                ends = (row["speedup_low"], row["speedup_high"])
                line.speedup = Estimate(row["speedup"], *(None if np.isnan(end) else float(end) for end in ends))
            line.verdict = verdict_text(row)
        lines += made
    return lines


def _lines(part: str, by_label: dict[str, list[Recorded]]) -> list[Line]:
    reference = next(iter(by_label.values()))[0]
    lines = []
    for label, recorded in by_label.items():
        found = moved(recorded[0], reference)
        for one in recorded[1:]:
            found += moved(one, reference)
        ms = [m for one in recorded for m in one.ms_per_token]
        spreads = [(max(one.ms_per_token) - min(one.ms_per_token)) / float(np.median(one.ms_per_token))
                   for one in recorded if len(one.ms_per_token) > 1]  # fmt: skip
        rounds = sum(one.num_rounds for one in recorded)
        accepted = sum(one.num_accepted for one in recorded) / rounds if rounds else None
        lines.append(
            Line(part, label, recorded, found, recorded[0] is reference, accepted, float(np.median(ms)) if ms else None,
                 float(np.median(spreads)) if spreads else None)
        )  # fmt: skip
    for line in lines:
        if line.ms_per_token and lines[0].ms_per_token:
            line.relative = line.ms_per_token / lines[0].ms_per_token
    return lines


def _verdict(doc: Document, lines: Sequence[Line]) -> None:
    """What moved, in a sentence each."""
    others = [line for line in lines if line.found.agreement.compared]
    kept = [line for line in others if line.found.agreement.identical == line.found.agreement.compared]
    doc.text(f"In {len(kept)} of {len(others)} rows every output is the reference's, id for id.")
    for line in others:
        found = line.found.agreement
        if found.identical < found.compared:
            doc.text(
                f"{line.part}, {line.label}: {found.compared - found.identical} of {found.compared} outputs differ from the "
                f"reference's, first at token {min(found.positions)}."
            )
    moving = [line for line in kept if line.found.rounds_same < line.found.rounds_compared]
    if moving:
        names = ", ".join(dict.fromkeys(line.part for line in moving))
        doc.text(f"Same output by other rounds: {names}. Who was when where decided the rounds, and not the text.")


def table_of(frames: Frames, runs: Sequence[int], lines: Sequence[Line], suffix: str = "") -> Table:
    rows = []
    for line in lines:
        found = line.found
        compared = bool(found.rounds_compared)
        cells = {
            "method": Cell(line.part),
            "configuration": Cell(line.label + (" (reference)" if line.is_reference else "")),
            "same_output": Cell(found.agreement.text()),
            "first_divergence": number(found.agreement.median_position, 0),
            "same_rounds": Cell(f"{found.rounds_same}/{found.rounds_compared}" if compared else "-"),
            "accepted_per_round": number(line.accepted_per_round, 3),
            "ms_per_token": number(line.ms_per_token),
            "spread_percent": number(None if line.spread is None else 100 * line.spread, 1),
            "over_reference": number(line.relative),
            "speedup": cell(line.speedup),
            "verdict": Cell(line.verdict or None),
        }
        rows.append(Row(cells, ranked=False))
    columns = [
        Column("method", "method", merge=True, text=True),
        Column("configuration", "configuration", text=True),
        Column("same_output", "same output"),
        Column("first_divergence", "first divergence"),
        Column("same_rounds", "same rounds"),
        Column("accepted_per_round", "accepted/round"),
        Column("ms_per_token", "ms/token"),
        Column("spread_percent", "spread, %"),
        Column("over_reference", "over reference"),
        Column("speedup", "speed-up"),
        Column("verdict", "own verdict", text=True),
    ]
    other = sum(line.found.agreement.other_prompt for line in lines)
    notes = [f"{other} outputs were not compared: their prompts differ, because the conversation before did"] if other else []
    return Table(
        f"reproducibility{suffix}", "What moves between configurations", columns, rows,
        f"{WORDS} {_setting(frames, runs)}", notes,
    ).drop_empty_columns()  # fmt: skip


def _setting(frames: Frames, runs: Sequence[int]) -> str:
    """n, law, and what all configurations share."""
    rows, facts = frames.runs.loc[list(runs)], frames.facts[runs[0]]
    decoding = (facts.get("config") or {}).get("decoding") or {}
    temperature = decoding.get("temperature") or 0.0
    prompts = ", ".join(str(int(n)) for n in sorted(set(rows["num_prompts"].dropna())))
    repeats = ", ".join(str(int(n)) for n in sorted(set(rows["repeats"].dropna())))
    law = f"T={temperature:g}" if temperature else "greedy"
    shared = configuration_of(facts)
    vary = varying(configuration_of(frames.facts[run]) for run in runs)
    same = "; ".join(f"{name} {shared[name]}" for name in ("machine", "device", "format", "attention") if name not in vary)
    limit = decoding.get("max_new_tokens")
    return f"n = {prompts} prompts x {repeats_text(repeats)}; {law}, at most {limit} new tokens; {same}; batch size 1."


def figure_of(lines: Sequence[Line], suffix: str = "") -> Drawing:
    """Shares of equal outputs and of equal rounds, and every repeat's time per token, by configuration."""
    parts = list(dict.fromkeys(line.part for line in lines))
    rows, ticks, y = [], list[tuple[float, str, bool]](), 0.0
    for part in parts:
        ticks.append((y, part, True))
        y += 1
        for line in (line for line in lines if line.part == part):
            found = line.found
            rounds = found.rounds_same / found.rounds_compared if found.rounds_compared else np.nan
            share = np.nan if found.agreement.share is None else found.agreement.share
            for repeat, ms in enumerate(line.repeats or [np.nan]):
                rows.append({"method": part, "configuration": line.label, "same_output": share, "same_rounds": rounds,
                             "repeat": repeat, "ms_per_token": ms, "y": y})  # fmt: skip
            ticks.append((y, line.label + (" (reference)" if line.is_reference else ""), False))
            y += 1
        y += 0.4
    frame = pd.DataFrame(rows)
    once = frame.drop_duplicates("y")
    with styled():
        figure, axes = new_figure(1, 2, height=1.0 + 0.2 * y, sharey=True)
        left, right = axes.flat
        left.barh(once["y"], once["same_output"], height=0.6, color="#9ECAE1", edgecolor=COLOURS[2], label="same output")
        left.plot(once["same_rounds"], once["y"], color=COLOURS[1], marker="D", linestyle="", label="same rounds")
        left.set_xlim(-0.03, 1.04)
        left.set_xlabel("share of outputs\nequal to the reference's")
        for number_, part in enumerate(parts):
            own = frame[frame["method"] == part]
            style = series(number_)
            right.plot(own["ms_per_token"], own["y"], color=style["color"], marker=style["marker"], linestyle="",
                       markerfacecolor="none")  # fmt: skip
        right.set_xlim(left=0)
        right.set_xlabel("ms per token,\none mark per repeat")
        left.set_yticks([at for at, _, _ in ticks], [label for _, label, _ in ticks])
        for tick, (_, _, head) in zip(left.get_yticklabels(), ticks, strict=True):
            tick.set_fontweight("bold" if head else "normal")
        for axis in axes.flat:
            axis.set_ylim(y - 0.2, -0.8)
            axis.tick_params(axis="y", length=0)
            axis.grid(axis="y", visible=False)
        legend_below(figure, *legend_of(axes))
    return Drawing(
        f"reproducibility{suffix}", "What moves between configurations", figure, frame.drop(columns="y"),
        "Left: share of outputs that equal the reference's id for id (bars), and of those whose rounds had the same counts "
        "(diamonds); no bar for a reference without a second repeat. Right: decode time per token of every repeat.",
    )  # fmt: skip
