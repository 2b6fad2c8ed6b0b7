"""Drafts that are wrong on purpose: does every method keep the target's text, and is it as fast as theory says?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd

from specbench.analysis.derive.conditions import groups
from specbench.analysis.derive.scripted import CLOSED_FORMS, Scripted, scripted
from specbench.analysis.read.frames import Frames
from specbench.analysis.reports import study
from specbench.analysis.reports.study import Chapter
from specbench.analysis.reports.words import Words
from specbench.analysis.show.document import Document
from specbench.analysis.show.style import Drawing, errors, legend_below, new_figure, series, styled
from specbench.analysis.show.table import Table
from specbench.config.draft_errors import DraftErrors
from specbench.measure.theory import formulas
from specbench.measure.theory.played import Times, free_running

GRID = np.linspace(0.0, 1.0, 21)
CURVE_TOKENS, CURVE_SAMPLES = 64, 30  # of the free-running schedule's curve, which has no formula
ORDER = (formulas.SEQUENTIAL, formulas.LOCKSTEP, formulas.FREE_RUNNING)
WORDS = Words(__name__)


@dataclass(frozen=True)
class Replay(study.Case):
    """A run whose draft followed a script."""

    found: Scripted

    @property
    def method(self) -> str:
        return self.found.method

    @property
    def order(self) -> tuple[Any, ...]:
        """By method, falling acceptance."""
        return ORDER.index(self.found.schedule), self.method, -self.found.set_acceptance, self.found.errors

    @property
    def kind(self) -> str:
        return "independent" if DraftErrors.parse(self.found.errors).kind in CLOSED_FORMS else "patterned"

    @property
    def as_scripted(self) -> str:
        return f"{self.found.as_scripted}/{self.found.num_rounds}"

    @property
    def reached(self) -> float | None:
        script = self.found.speedup_scripted
        return None if self.speedup is None or script is None else self.speedup.value / script


def chapters(frames: Frames) -> Iterator[Chapter[Replay]]:
    """One per data set and conditions."""
    for _, own in groupby(list(study.cases_in(frames, groups(frames))), key=lambda case: id(case.comparison)):
        found = [(case, scripted(case.comparison, case.run)) for case in own]
        cases = sorted((Replay.of(case, made) for case, made in found if made is not None), key=lambda case: case.order)
        first = found[0][0]
        again = f", conditions {first.group.number}" if first.group.number > 1 else ""
        yield Chapter(frames, cases, [first.group], f"{first.data}, {first.comparison.pair}{again}")


def say(doc: Document, chapter: Chapter[Replay]) -> None:
    """What must hold, said in one sentence, and aloud where it does not."""
    cases = chapter.cases
    rounds, good = sum(case.found.num_rounds for case in cases), sum(case.found.as_scripted for case in cases)
    same = sum(case.facts["verdict"] == "identical" for case in cases)
    doc.text(WORDS.say("as_scripted", good=good, rounds=rounds, same=same, runs=len(cases)))
    for case in cases:
        if case.found.num_rounds > case.found.as_scripted or case.facts["verdict"] == "different":
            doc.warning(WORDS.say("not_as_scripted", case=case))


def table_of(chapter: Chapter[Replay]) -> Table:
    lengths = list(dict.fromkeys(f"{case.method} {case.found.gamma}" for case in chapter.cases))
    notes, setting = study.notes_of(chapter.cases), study.setting_of(chapter.cases)
    return WORDS.table(chapter, "rollback_stress", notes, lengths=lengths, setting=setting)


# ---------------------------------------------------------------------------------------------------- figures
def _points(cases: Sequence[Replay]) -> pd.DataFrame:
    return pd.DataFrame(
        {"method": c.method, "errors": c.found.errors, "kind": c.kind, "acceptance": c.found.set_acceptance}
        | study.ends_of("speedup", c.speedup)
        | {"emitted": c.found.emitted, "emitted_low": np.nan, "emitted_high": np.nan}
        | {"speedup_played": c.found.speedup_scripted}
        for c in cases
    ).astype({"speedup_played": float})


def _by_method(cases: Sequence[Replay]) -> dict[str, list[Replay]]:
    return {method: list(own) for method, own in groupby(cases, key=lambda case: case.method)}


def against_acceptance(chapter: Chapter[Replay]) -> Drawing:
    """Speed-up and tokens per round over the acceptance that was set; curves: what theory says."""
    methods = _by_method(chapter.cases)
    curves = [curve(method, own) for method, own in methods.items()]
    frame = pd.concat([_points(chapter.cases), *(c for c in curves if c is not None)], ignore_index=True)
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
            axis.set(xlabel="acceptance that was set", ylabel=label, xlim=(-0.04, 1.04))
            axis.set_ylim(bottom=0)
            axis.axhline(1.0, color="black", linewidth=0.7)
        bound, left = _bound(chapter.cases), axes[0, 0]
        if bound is not None:
            left.axhline(bound, color="#8C8C8C", linewidth=0.9, linestyle=(0, (1, 2)))
            at = {"xytext": (2, 3), "textcoords": "offset points", "fontsize": 7.5, "color": "#555555"}
            left.annotate("t_AR / t_draft", (0.0, bound), **at)
            left.set_ylim(0, max(left.get_ylim()[1], 1.1 * bound))
        legend_below(figure)
    return WORDS.drawing("speedup_by_acceptance", figure, frame, setting=study.setting_of(chapter.cases))


def _measured(cases: Sequence[Replay]) -> list[tuple[Times, float]]:
    """The times of the runs that measured them, and their baselines' per token."""
    known = [(case.found.times, case.found.ar_seconds) for case in cases]
    return [(times, ar) for times, ar in known if times is not None and ar is not None]


def _bound(cases: Sequence[Replay]) -> float | None:
    """t_AR / t_draft, median over the free-running runs."""
    ratios = [ar / times.draft for times, ar in _measured([c for c in cases if c.found.schedule == formulas.FREE_RUNNING])]
    return float(np.median(ratios)) if ratios else None


def curve(method: str, cases: Sequence[Replay]) -> pd.DataFrame | None:
    """A method's theory over acceptance, with the medians of its runs' times; None where no times were measured."""
    measured, first = _measured(cases), cases[0].found
    if not measured:
        return None
    ar = float(np.median([ar for _, ar in measured]))
    parts = [[getattr(times, name) for times, _ in measured] for name in ("draft", "verify", "row")]
    times = Times(*(float(np.median(part)) for part in parts))
    rows = []
    for alpha in map(float, GRID):
        if first.schedule == formulas.FREE_RUNNING:
            speed, per_round = _free_running(alpha, first.gamma, times, ar)
        else:
            speed = formulas.closed_speedup(first.schedule, alpha, first.gamma, times, ar)
            per_round = formulas.closed_emitted(first.schedule, alpha, first.gamma) or np.nan
        rows.append({"method": method, "kind": "theory", "acceptance": alpha, "speedup": speed, "emitted": per_round})
    return pd.DataFrame(rows)


def _free_running(alpha: float, gamma: int, times: Times, ar: float) -> tuple[float, float]:
    """Speed-up and tokens per round of AMUSD's schedule over independent errors, in virtual time."""
    pattern, seconds, tokens, rounds = DraftErrors("iid", rate=1.0 - alpha), 0.0, 0, 0
    for n in range(CURVE_SAMPLES):
        wrong = pattern.wrong_positions(f"curve/{n}", 0, CURVE_TOKENS)
        steps, took = free_running(wrong, CURVE_TOKENS, CURVE_TOKENS, times, gamma)
        seconds, tokens, rounds = seconds + took, tokens + CURVE_TOKENS - 1, rounds + len(steps)
    return ar * tokens / seconds, tokens / rounds


def by_pattern(chapter: Chapter[Replay]) -> Drawing:
    """Every pattern's measured speed-up beside the one that its script gives when it is played."""
    acceptance = {case.found.errors: case.found.set_acceptance for case in chapter.cases}
    patterns = sorted(acceptance, key=lambda text: -acceptance[text])
    methods = _by_method(chapter.cases)
    frame = _points(chapter.cases).drop(columns=["emitted_low", "emitted_high"])
    with styled():
        figure, axes = new_figure(1, len(methods), height=1.2 + 0.22 * len(patterns), sharey=True, sharex=True)
        for i, (axis, method) in enumerate(zip(axes.flat, methods, strict=True)):
            own, style = frame[frame["method"] == method], series(i)
            y = [patterns.index(text) for text in own["errors"]]
            bars = errors(own["speedup"], own["speedup_low"], own["speedup_high"])
            axis.errorbar(own["speedup"], y, xerr=bars, color=style["color"], marker=style["marker"], linestyle="")
            stroke = {"color": "#555555", "marker": "|", "markersize": 10, "linestyle": ""}
            axis.plot(own["speedup_played"], y, label="the script, played", **stroke)
            axis.axvline(1.0, color="black", linewidth=0.7)
            axis.set_yticks(range(len(patterns)), patterns)
            axis.set(title=method, xlabel="speed-up", ylim=(len(patterns) - 0.5, -0.5))
        largest = float(np.nanmax(frame[["speedup", "speedup_high", "speedup_played"]].to_numpy()))
        axes[0, 0].set_xlim(0, 1.06 * max(1.0, largest))
        legend_below(figure)
    return WORDS.drawing("speedup_by_errors", figure, frame, setting=study.setting_of(chapter.cases))


STUDY = study.Study(
    **WORDS.study,
    chapters=chapters,
    say=say,
    table=table_of,
    shown=(against_acceptance, by_pattern),
)
