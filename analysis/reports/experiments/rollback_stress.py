"""Drafts that are wrong on purpose: does every method keep the target's text, and is it as fast as theory says?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from specbench.analysis.derive import schedules, theory
from specbench.analysis.derive.conditions import Group, groups
from specbench.analysis.derive.derive import Comparison, Estimate, comparisons
from specbench.analysis.derive.scripted import CLOSED_FORMS, Scripted, closed_emitted, closed_speedup, scripted
from specbench.analysis.read.frames import Frames
from specbench.analysis.show.captions import definitions, setting, verdict_text
from specbench.analysis.show.document import Document
from specbench.analysis.show.paper_tables import cell, number
from specbench.analysis.show.style import Drawing, errors, legend_below, legend_of, new_figure, series, styled
from specbench.analysis.show.table import Cell, Column, Row, Table
from specbench.config.draft_errors import DraftErrors

TITLE = "Drafts that are wrong on purpose"
GRID = np.linspace(0.0, 1.0, 21)
CURVE_TOKENS, CURVE_SAMPLES = 64, 30  # of the free-running schedule's curve, which has no formula
WORDS = (
    "The draft replays the target's own text, wrong where its script says, at the cost of the pair's real draft: acceptance is "
    "set, not measured. Draft errors: never; always; iid:r, each position by itself with probability r; every:k, each k-th "
    "position; bursts:a+b, a right ones, then b wrong ones; end:s, the last share s of the length limit. Acceptance set: share "
    "of right positions; measured: accepted over judged drafts, with a 95 % Wilson interval over the drafts judged in one pass "
    "(drafts behind an error are not judged: where errors come in patterns, the two may differ). "
)
PLAYED = (
    "Played: the same script through the method's schedule, with the times that the run measured (per baseline token, draft "
    "forward and verifying forward, messages free). Formula: Leviathan's for speculative, PEARL's for pearl, both for errors "
    "that fall independently; for amusd the bound t_AR / t_draft. Reached: measured over played. "
)


class Line:
    """One run and its comparison."""

    def __init__(self, comparison: Comparison, run: int, found: Scripted):
        self.comparison, self.run, self.found = comparison, run, found
        self.facts = comparison.runs.loc[run]
        self.pattern = DraftErrors.parse(found.errors)
        self.speedup: Estimate | None = comparison.speedup(run)

    @property
    def independent(self) -> bool:
        return self.pattern.kind in CLOSED_FORMS


def fill(doc: Document, frames: Frames) -> Table:
    """A table and a figure per data set and conditions. Raises ValueError if no run's draft was scripted."""
    tables: list[Table] = []
    for group in groups(frames):
        for comparison in comparisons(frames, group):
            lines = lines_of(comparison)
            if not lines:
                continue
            doc.heading(f"{comparison.data}, {comparison.pair}" + (f", conditions {group.number}" if group.number > 1 else ""))
            suffix = "" if not tables else f"_{len(tables) + 1}"
            tables.append(table_of(group, comparison, lines, suffix))
            _verdict(doc, lines)
            doc.add(tables[-1])
            doc.add(against_acceptance(group, comparison, lines, suffix))
            doc.add(by_pattern(group, comparison, lines, suffix))
    if not tables:
        raise ValueError("no run has drafts that are wrong on purpose: set pair.draft_errors")
    return tables[0]


def lines_of(comparison: Comparison) -> list[Line]:
    """The scripted runs, by method, falling acceptance."""
    found = [(int(run), scripted(comparison, int(run))) for run in comparison.runs.index]
    lines = [Line(comparison, run, made) for run, made in found if made is not None]
    order = (theory.SEQUENTIAL, theory.LOCKSTEP, theory.FREE_RUNNING)
    return sorted(
        lines,
        key=lambda line: (order.index(line.found.schedule), line.found.method, -line.found.set_acceptance, line.found.errors),
    )


def _verdict(doc: Document, lines: Sequence[Line]) -> None:
    """What must hold, said in one sentence, and aloud where it does not."""
    rounds, good = sum(line.found.num_rounds for line in lines), sum(line.found.as_scripted for line in lines)
    same = [line for line in lines if line.facts["verdict"] == "identical"]
    doc.text(
        f"{good:,} of {rounds:,} rounds accepted exactly what their script says; the output was the target's, id for id, in "
        f"{len(same)} of {len(lines)} runs."
    )
    for line in lines:
        if line.found.as_scripted < line.found.num_rounds or line.facts["verdict"] == "different":
            wrong = line.found.num_rounds - line.found.as_scripted
            doc.warning(
                f"{line.found.method} with {line.found.errors}: {wrong} rounds did not accept what their script says; output: "
                f"{verdict_text(line.facts)}. After a numerical tie the text has left the script; anything else is a fault of "
                "the method."
            )


def table_of(group: Group, comparison: Comparison, lines: Sequence[Line], suffix: str = "") -> Table:
    rows = []
    for line in lines:
        found, measured = line.found, line.speedup
        played = found.speedup_scripted
        cells = {
            "method": Cell(found.method),
            "errors": Cell(found.errors),
            "acceptance_set": number(found.set_acceptance, 3),
            "acceptance": cell(found.acceptance, 3),
            "emitted_per_round": number(found.emitted),
            "emitted_played": number(found.emitted_scripted),
            "emitted_formula": number(found.closed_emitted),
            "speedup": cell(measured),
            "speedup_played": number(played),
            "speedup_formula": number(found.closed_speedup),
            "reached": number(None if measured is None or played is None else measured.value / played),
            "as_scripted": Cell(f"{found.as_scripted}/{found.num_rounds}"),
            "lossless": Cell(verdict_text(line.facts)),
        }
        rows.append(Row(cells, ranked=False))
    columns = [
        Column("method", "method", merge=True, text=True),
        Column("errors", "draft errors", text=True),
        Column("acceptance_set", "set", "acceptance"),
        Column("acceptance", "measured", "acceptance"),
        Column("as_scripted", "as scripted", "rounds"),
        Column("emitted_per_round", "measured", "tokens per round"),
        Column("emitted_played", "played", "tokens per round"),
        Column("emitted_formula", "formula", "tokens per round"),
        Column("speedup", "measured", "speed-up"),
        Column("speedup_played", "played", "speed-up"),
        Column("speedup_formula", "formula", "speed-up"),
        Column("reached", "reached", "speed-up"),
        Column("lossless", "output", text=True),
    ]
    lengths = ", ".join(dict.fromkeys(f"{line.found.method} {line.found.gamma}" for line in lines))
    return Table(
        f"rollback_stress{suffix}",
        "Acceptance, tokens per round and speed-up: measured and expected",
        columns,
        rows,
        f"{WORDS}{PLAYED}Draft length: {lengths}. {definitions('emitted_per_round', 'speedup', 'lossless')} "
        + setting(group.conditions, [comparison]),
        list(comparison.notes),
    ).drop_empty_columns()


# ---------------------------------------------------------------------------------------------------- figures
def against_acceptance(group: Group, comparison: Comparison, lines: Sequence[Line], suffix: str = "") -> Drawing | None:
    """Speed-up and tokens per round over the acceptance that was set; curves: what theory says."""
    methods = list(dict.fromkeys(line.found.method for line in lines))
    rows = [_point(line) for line in lines]
    curves = [curve(method, [line for line in lines if line.found.method == method]) for method in methods]
    frame = pd.concat([pd.DataFrame(rows), *(c for c in curves if c is not None)], ignore_index=True)
    panels = (("speedup", "speed-up over autoregressive"), ("emitted", "tokens per target forward"))
    with styled():
        figure, axes = new_figure(1, 2, height=3.4)
        for axis, (key, label) in zip(axes.flat, panels, strict=True):
            for i, method in enumerate(methods):
                own, style = frame[frame["method"] == method], series(i)
                line = own[own["kind"] == "theory"]
                axis.plot(line["acceptance"], line[key], color=style["color"], linestyle=style["linestyle"], linewidth=1.2)
                for kind, face in (("independent", style["color"]), ("patterned", "white")):
                    points = own[own["kind"] == kind]
                    bars = errors(points[key], points[f"{key}_low"], points[f"{key}_high"])
                    shown = {"color": style["color"], "marker": style["marker"], "linestyle": "", "markerfacecolor": face}
                    name = {"label": method} if kind == "independent" else {}
                    axis.errorbar(points["acceptance"], points[key], yerr=bars, elinewidth=0.9, **shown, **name)
            axis.set_xlabel("acceptance that was set")
            axis.set_ylabel(label)
            axis.set_xlim(-0.04, 1.04)
            axis.set_ylim(bottom=0)
            axis.axhline(1.0, color="black", linewidth=0.7)
        bound = _bound(lines)
        if bound is not None:
            axes[0, 0].axhline(bound, color="#8C8C8C", linewidth=0.9, linestyle=(0, (1, 2)))
            axes[0, 0].annotate(
                "t_AR / t_draft", (0.0, bound), xytext=(2, 3), textcoords="offset points", fontsize=7.5, color="#555555"
            )
            axes[0, 0].set_ylim(0, max(axes[0, 0].get_ylim()[1], 1.1 * bound))
        legend_below(figure, *legend_of(axes))
    return Drawing(
        f"speedup_by_acceptance{suffix}",
        "Speed-up against acceptance",
        figure,
        frame,
        "Filled: errors that fall independently of each other (never, always, iid); open: patterns (every k-th, bursts, end) "
        "at the mean acceptance of their script. Lines: theory with the medians of the measured times: Leviathan's formula, "
        "PEARL's formula, and for amusd, which has none, its schedule played in virtual time over independent errors; dotted: "
        "amusd's bound t_AR / t_draft. Outputs end inside a round, which the formulas do not know: near acceptance 1 they "
        "promise more. Bars: 95 % over prompts. " + setting(group.conditions, [comparison]),
    )


def _point(line: Line) -> dict[str, object]:
    found, speed = line.found, line.speedup
    low, high = (np.nan, np.nan) if speed is None or speed.low is None else (speed.low, speed.high)
    return {
        "method": found.method,
        "errors": found.errors,
        "kind": "independent" if line.independent else "patterned",
        "acceptance": found.set_acceptance,
        "speedup": np.nan if speed is None else speed.value,
        "speedup_low": low,
        "speedup_high": high,
        "emitted": found.emitted,
        "emitted_low": np.nan,
        "emitted_high": np.nan,
        "speedup_played": np.nan if found.speedup_scripted is None else found.speedup_scripted,
    }


def _bound(lines: Sequence[Line]) -> float | None:
    """t_AR / t_draft, median over the free-running runs."""
    ratios = [
        line.found.ar_seconds / line.found.times.draft
        for line in lines
        if line.found.times is not None and line.found.ar_seconds is not None and line.found.schedule == theory.FREE_RUNNING
    ]
    return float(np.median(ratios)) if ratios else None


def curve(method: str, lines: Sequence[Line]) -> pd.DataFrame | None:
    """A method's theory over acceptance, with the medians of its runs' times; None where no times were measured."""
    known = [(line.found.times, line.found.ar_seconds) for line in lines]
    measured = [(times, ar) for times, ar in known if times is not None and ar is not None]
    if not measured:
        return None
    ar = float(np.median([ar for _, ar in measured]))
    parts = [[getattr(times, name) for times, _ in measured] for name in ("draft", "verify", "row")]
    times = schedules.Times(*(float(np.median(part)) for part in parts))
    first = lines[0].found
    rows = []
    for alpha in GRID:
        if first.schedule == theory.FREE_RUNNING:
            speed, per_round = _free_running(float(alpha), first.gamma, times, ar)
        else:
            speed = closed_speedup(first.schedule, float(alpha), first.gamma, times, ar)
            per_round = closed_emitted(first.schedule, float(alpha), first.gamma) or np.nan
        rows.append({"method": method, "kind": "theory", "acceptance": alpha, "speedup": speed, "emitted": per_round})
    return pd.DataFrame(rows)


def _free_running(alpha: float, gamma: int, times: schedules.Times, ar: float) -> tuple[float, float]:
    """Speed-up and tokens per round of AMUSD's schedule over independent errors, in virtual time."""
    pattern, seconds, tokens, rounds = DraftErrors("iid", rate=1.0 - alpha), 0.0, 0, 0
    for n in range(CURVE_SAMPLES):
        wrong = pattern.wrong_positions(f"curve/{n}", 0, CURVE_TOKENS)
        steps, took = schedules.free_running(wrong, CURVE_TOKENS, CURVE_TOKENS, times, gamma)
        seconds, tokens, rounds = seconds + took, tokens + CURVE_TOKENS - 1, rounds + len(steps)
    return ar * tokens / seconds, tokens / rounds


def by_pattern(group: Group, comparison: Comparison, lines: Sequence[Line], suffix: str = "") -> Drawing | None:
    """Every pattern's measured speed-up beside the one that its script gives when it is played."""
    methods = list(dict.fromkeys(line.found.method for line in lines))
    acceptance = {line.found.errors: line.found.set_acceptance for line in lines}
    patterns = sorted(acceptance, key=lambda text: -acceptance[text])
    frame = pd.DataFrame([_point(line) for line in lines])
    with styled():
        figure, axes = new_figure(1, len(methods), height=1.2 + 0.22 * len(patterns), sharey=True, sharex=True)
        for i, (axis, method) in enumerate(zip(axes.flat, methods, strict=True)):
            own = frame[frame["method"] == method]
            y = [patterns.index(text) for text in own["errors"]]
            bars = errors(own["speedup"], own["speedup_low"], own["speedup_high"])
            style = series(i)
            axis.errorbar(own["speedup"], y, xerr=bars, color=style["color"], marker=style["marker"], linestyle="")
            axis.plot(
                own["speedup_played"], y, color="#555555", marker="|", markersize=10, linestyle="", label="the script, played"
            )
            axis.axvline(1.0, color="black", linewidth=0.7)
            axis.set_title(method)
            axis.set_yticks(range(len(patterns)), patterns)
            axis.set_ylim(len(patterns) - 0.5, -0.5)
            axis.set_xlabel("speed-up")
        largest = float(np.nanmax(frame[["speedup", "speedup_high", "speedup_played"]].to_numpy()))
        axes[0, 0].set_xlim(0, 1.06 * max(1.0, largest))
        strokes, labels = axes[0, 0].get_legend_handles_labels()
        legend_below(figure, strokes, labels)
    return Drawing(
        f"speedup_by_errors{suffix}",
        "Speed-up by pattern of errors",
        figure,
        frame.drop(columns=["emitted_low", "emitted_high"]),
        "Marks: measured, with 95 % intervals over prompts; grey strokes: the same script played through the method's schedule "
        "with the run's measured times. Patterns in order of falling acceptance. " + setting(group.conditions, [comparison]),
    )
