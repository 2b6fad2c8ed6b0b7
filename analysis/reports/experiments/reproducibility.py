"""The same run under other thread counts, number formats, devices, orders: what moves and what does not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import add

import numpy as np
import pandas as pd

from specbench.analysis.derive import repetitions
from specbench.analysis.derive.derive import Estimate
from specbench.analysis.derive.outputs import Agreement
from specbench.analysis.derive.repetitions import Recorded, configuration_of, label_of, varying
from specbench.analysis.read.frames import Frames
from specbench.analysis.read.shape import entry
from specbench.analysis.reports import study
from specbench.analysis.reports.study import Chapter
from specbench.analysis.reports.words import Words
from specbench.analysis.show.captions import verdict_text
from specbench.analysis.show.document import Document
from specbench.analysis.show.style import COLOURS, Drawing, Ladder, legend_below, new_figure, series, styled
from specbench.analysis.show.table import Table
from specbench.config.say import counted

WORDS = Words(__name__)


@dataclass
class Configured:
    """One configuration of one arm. recorded: one run, or for the baseline every run that measured one; reference: the part's
    first one. facts: the run's row of `Frames.runs`, None for a baseline."""

    part: str
    label: str
    recorded: list[Recorded]
    reference: list[Recorded]
    facts: pd.Series | None

    @property
    def shown(self) -> str:
        return self.label + (" (reference)" if self.recorded is self.reference else "")

    @cached_property
    def agreement(self) -> Agreement:
        return reduce(add, (repetitions.moved(one, self.reference[0]) for one in self.recorded))

    @property
    def same_output(self) -> str:
        return self.agreement.text()

    @property
    def verdict(self) -> str | None:
        return None if self.facts is None else verdict_text(self.facts)

    @property
    def same_rounds(self) -> str:
        return f"{self.agreement.rounds_same}/{self.agreement.compared}" if self.agreement.compared else "-"

    @property
    def accepted_per_round(self) -> float | None:
        rounds = sum(one.num_rounds for one in self.recorded)
        return sum(one.num_accepted for one in self.recorded) / rounds if rounds else None

    @property
    def ms_per_token(self) -> float:
        return _median(_repeats(self.recorded))

    @property
    def spread_percent(self) -> float:
        several = [one.ms_per_token for one in self.recorded if len(one.ms_per_token) > 1]
        return 100 * _median([(max(ms) - min(ms)) / _median(ms) for ms in several])

    @property
    def over_reference(self) -> float:
        return self.ms_per_token / _median(_repeats(self.reference))

    @property
    def speedup(self) -> Estimate | None:
        return None if self.facts is None else Estimate(*self.facts[["speedup", "speedup_low", "speedup_high"]])


def _repeats(recorded: Iterable[Recorded]) -> list[float]:
    return [ms for one in recorded for ms in one.ms_per_token]


def _median(values: list[float]) -> float:
    return float(np.median(values)) if values else np.nan


def chapters(frames: Frames) -> Iterator[Chapter[Configured]]:
    """One per work that was done under two configurations, the one with most runs first."""
    works: dict[str, list[int]] = {}
    for run, facts in frames.facts.items():
        works.setdefault(repetitions.work_of(facts), []).append(run)
    for runs in sorted(works.values(), key=len, reverse=True):
        cases = cases_of(frames, runs)
        several = len({case.label for case in cases}) > 1
        heading = WORDS.say("heading", **frames.runs.loc[runs[0], ["data", "target"]])
        yield Chapter(frames, cases if several else [], heading=heading)


def cases_of(frames: Frames, runs: Sequence[int]) -> list[Configured]:
    """The baseline under every configuration, then each method, the reference first."""
    configurations = {run: configuration_of(frames.facts[run]) for run in runs}
    names = varying(configurations.values())
    order = sorted(runs, key=lambda run: (repetitions.rank(configurations[run]), str(frames.facts[run].get("created_at"))))
    reference = configurations[order[0]]
    labels = {}
    for run, own in configurations.items():  # the reference by all that varies, the others by what they change
        labels[run] = label_of(own, [name for name in names if own[name] != reference[name]] or names) or "as it is"
    paired = [run for run in order if frames.own_arm(run) == "method" and not np.isnan(frames.runs.at[run, "speedup"])]
    baselines: dict[str, list[Recorded]] = {}
    for run in paired:
        baselines.setdefault(labels[run], []).append(Recorded(frames, run, "baseline"))
    cases = _part(str(frames.runs.at[paired[0], "baseline"]), baselines) if paired else []
    by_method: dict[str, list[int]] = {}
    for run in order:
        by_method.setdefault(repetitions.method_of(frames.facts[run]), []).append(run)
    first = frames.runs.loc[[members[0] for members in by_method.values()]]
    for members, (_, row) in zip(by_method.values(), first.iterrows(), strict=True):
        several = (first["method"].astype(str) == str(row["method"])).sum() > 1
        found: dict[str, list[Recorded]] = {}
        for run in members:
            label = labels[run]
            while label in found:  # one configuration, run again
                label += " again"
            found[label] = [Recorded(frames, run, frames.own_arm(run))]
        cases += _part(f"{row['method']} {row['options']}" if several else str(row["method"]), found, frames.runs)
    return cases


def _part(part: str, by_label: dict[str, list[Recorded]], rows: pd.DataFrame | None = None) -> list[Configured]:
    reference = next(iter(by_label.values()))
    return [
        Configured(part, label, recorded, reference, None if rows is None else rows.loc[recorded[0].run])
        for label, recorded in by_label.items()
    ]


def say(doc: Document, chapter: Chapter[Configured]) -> None:
    """What moved, in a sentence each."""
    others = [case for case in chapter.cases if case.agreement.compared]
    kept = [case for case in others if case.agreement.identical == case.agreement.compared]
    doc.text(WORDS.say("identical", kept=len(kept), rows=len(others)))
    for case in others:
        if case.agreement.identical < case.agreement.compared:
            doc.text(WORDS.say("differs", case=case))
    moving = [case.part for case in kept if case.agreement.rounds_same < case.agreement.compared]
    if moving:
        doc.text(WORDS.say("other_rounds", names=dict.fromkeys(moving)))


def table_of(chapter: Chapter[Configured]) -> Table:
    other = sum(case.agreement.other_prompt for case in chapter.cases)
    notes = [WORDS.say("other_prompts", number=other)] if other else []
    return WORDS.table(chapter, "reproducibility", notes, setting=_setting(chapter))


def _setting(chapter: Chapter[Configured]) -> str:
    """n, law, and what all configurations share."""
    runs = sorted({one.run for case in chapter.cases for one in case.recorded})
    rows, facts = chapter.frames.runs.loc[runs], chapter.frames.facts[runs[0]]
    decoding = entry(facts, "config.decoding") or {}
    prompts, repeats = (", ".join(str(int(n)) for n in sorted(set(rows[name].dropna()))) for name in ("num_prompts", "repeats"))
    law = f"T={decoding['temperature']:g}" if decoding.get("temperature") else "greedy"
    shared = configuration_of(facts)
    vary = varying(configuration_of(chapter.frames.facts[run]) for run in runs)
    same = "; ".join(f"{name} {shared[name]}" for name in ("machine", "device", "format", "attention") if name not in vary)
    limit = decoding.get("max_new_tokens")
    n = f"{counted(prompts, 'prompt')} x {counted(repeats, 'repeat')}"
    return f"n = {n}; {law}, at most {limit} new tokens; {same}; batch size 1."


def figure_of(chapter: Chapter[Configured]) -> Drawing:
    """Shares of equal outputs and of equal rounds, and every repeat's time per token, by configuration."""
    parts = list(dict.fromkeys(case.part for case in chapter.cases))
    ladder, rows = Ladder(gap=0.4), []
    for part in parts:
        ladder.head(part)
        for case in (case for case in chapter.cases if case.part == part):
            found, y = case.agreement, ladder.row(case.shown)
            rounds = found.rounds_same / found.compared if found.compared else np.nan
            share = np.nan if found.share is None else found.share
            for repeat, ms in enumerate(_repeats(case.recorded) or [np.nan]):
                rows.append({"method": part, "configuration": case.label, "same_output": share, "same_rounds": rounds,
                             "repeat": repeat, "ms_per_token": ms, "y": y})  # fmt: skip
    frame = pd.DataFrame(rows)
    once = frame.drop_duplicates("y")
    with styled():
        figure, axes = new_figure(1, 2, height=1.0 + 0.2 * (ladder.bottom + ladder.gap), sharey=True)
        left, right = axes.flat
        left.barh(once["y"], once["same_output"], height=0.6, color="#9ECAE1", edgecolor=COLOURS[2], label="same output")
        left.plot(once["same_rounds"], once["y"], color=COLOURS[1], marker="D", linestyle="", label="same rounds")
        left.set(xlim=(-0.03, 1.04), xlabel="share of outputs\nequal to the reference's")
        for number, part in enumerate(parts):
            own = frame[frame["method"] == part]
            right.plot(own["ms_per_token"], own["y"], **series(number) | {"linestyle": "", "markerfacecolor": "none"})
        right.set_xlim(left=0)
        right.set_xlabel("ms per token,\none mark per repeat")
        ladder.label(axes, margin=0.2)
        legend_below(figure)
    return WORDS.drawing("reproducibility", figure, frame.drop(columns="y"))


STUDY = study.Study(
    **WORDS.study,
    chapters=chapters,
    say=say,
    table=table_of,
    shown=(figure_of,),
    uses_repetitions=True,  # runs that differ in the order of the arms alone
)
