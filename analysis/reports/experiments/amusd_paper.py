"""AMUSD's table (McDanel 2024, 2410.17375) beside ours, with the paper's boundaries and with equal ones; its figure 5.

The published table mixes three boundaries (as the published code measures): autoregressive decoding is timed with its prefill,
speculative decoding without either prefill and with a handicapped draft (`compat=amusd`), AMUSD with its prefill; all divide by
all output tokens. Here both are made from the same runs: `paper_rate` counts as the paper does, the other columns as all of
this project's tables. What cannot be had from warm runs is left out and said: the paper's cold start.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd

from specbench.analysis.derive.conditions import Group
from specbench.analysis.derive.derive import Comparison, Estimate, comparisons, ratio_of, strata_of
from specbench.analysis.derive.families import BASELINE
from specbench.analysis.derive.ranking import is_ranked
from specbench.analysis.read.frames import Frames
from specbench.analysis.read.shape import entry
from specbench.analysis.reports import reference, study
from specbench.analysis.reports.study import Case, Chapter
from specbench.analysis.reports.words import Words
from specbench.analysis.show import check_tables, figures_power, figures_speed
from specbench.analysis.show.captions import verdict_text
from specbench.analysis.show.document import Document
from specbench.analysis.show.table import Table
from specbench.measure.pairing import ArmTimes, FloatArray, PairedTimes

SOURCE = "AMUSD"  # what the reference file's sources begin with
WORDS = Words(__name__)


# ---------------------------------------------------------------------------------------------------- the table
@dataclass
class Beside:
    """A method on a data set: its entries by column. missing: what the data set has no run of."""

    comparison: Comparison
    group: Group
    missing: str
    entries: dict[str, Any]


Runs = Mapping[str, Case | None]


def cases_of(frames: Frames, groups: Sequence[Group]) -> list[Beside]:
    """The rows of every data set that has a run over autoregressive decoding, with the published ones."""
    over = {name: [g for g in groups if g.conditions.get("baseline") == name] for name in ("autoregressive", "speculative")}
    over_sd = list(study.cases_in(frames, over["speculative"]))
    published, made = reference.load(), list[Beside]()
    for _, own in groupby(study.cases_in(frames, over["autoregressive"][:1]), key=lambda case: id(case.comparison)):
        first, *others = own
        comparison, data, cases = first.comparison, first.data, [first, *others]
        same = [case for case in over_sd if (case.comparison.pair, case.data) == (comparison.pair, data)]
        runs = {
            "speculative": _find(cases, "speculative", method__compat=None),
            "speculative (compat=amusd)": _find(cases, "speculative", method__compat="amusd"),
            "amusd": _find(cases, "amusd"),
        }
        direct = {
            "amusd over speculative": _find(same, "amusd", baseline__compat=None),
            "amusd over speculative (compat=amusd)": _find(same, "amusd", baseline__compat="amusd"),
        }
        if any(runs.values()):
            absent = [name for name, case in (runs | direct).items() if case is None]
            missing = WORDS.say("missing", data=data, absent=absent) if absent else ""
            for method, entries in _entries(comparison, runs, direct).items():
                entries |= {"data": data, "method": method} | _published(published, method, data)
                made.append(Beside(comparison, first.group, missing, entries))
    return made


def _find(cases: Iterable[Case], method: str, **options: str | None) -> Case | None:
    """The first case of a method with these options, `method__compat=None`: not set; None without one."""
    of_method = (case for case in cases if case.facts["method"] == method)
    wanted = {f"config.{name.replace('__', '.')}": value for name, value in options.items()}
    return next((c for c in of_method if all(entry(c.run_facts, name) == value for name, value in wanted.items())), None)


def _entries(comparison: Comparison, runs: Runs, direct: Runs) -> dict[str, dict[str, Any]]:
    """The three rows of a data set, by method. direct: AMUSD over speculative decoding."""
    known = [case for case in runs.values() if case]
    paper_rates = [paper_rate(case.pairs.baseline, True) for case in known if len(case.pairs)]
    made: dict[str, dict[str, Any]] = {
        "autoregressive": {
            "ms_per_token": _span([1e3 / rate for case in known if (rate := comparison.rates(case.run)[1])]),
            "speedup": 1.0,
            "paper_ms_per_token": _span([1e3 / rate for rate in paper_rates]),
            "paper_speedup": 1.0,
        }
    }
    counting = (("speculative", "speculative (compat=amusd)", False), ("amusd", "amusd", True))
    for method, counted, with_prefill in counting:
        equal, paper, own = runs[method], runs[counted], dict[str, Any]()
        if equal:
            own |= {"ms_per_token": equal.ms_per_token, "speedup": equal.speedup}
            own["lossless"] = verdict_text(equal.facts) + ("" if is_ranked(equal.facts) else " (not ranked)")
        if paper and len(paper.pairs):
            own["paper_ms_per_token"] = 1e3 / paper_rate(paper.pairs.method, with_prefill)
            own["paper_speedup"] = paper_speedup(paper.pairs, with_prefill, True)
        if equal or paper:
            made[method] = own
    if "amusd" in made:
        equal, paper = direct.values()
        if equal:
            made["amusd"]["over_speculative"] = equal.speedup
        if paper and len(paper.pairs):
            made["amusd"]["paper_over_speculative"] = paper_speedup(paper.pairs, True, False)
    return made


def _span(values: list[float]) -> float | str | None:
    """One value, or from where to where several runs measured the same thing."""
    ends = [f"{end(values):.2f}" for end in (min, max) if values]
    return " to ".join(ends) if len(set(ends)) > 1 else values[0] if values else None


def table_of(chapter: Chapter[Beside]) -> Table:
    """Data set and method down; ms/token and speed-up with both boundaries, AMUSD over speculative, and the published ones."""
    shown = study.comparisons_of(chapter.cases)
    standins = ", ".join(c.data for c in shown if c.data.endswith("-standin"))
    notes = [WORDS.say("standins", names=standins)] if standins else []
    notes += [case.missing for case in chapter.cases if case.missing]
    notes += study.notes_of(chapter.cases)
    sources, setting = ", ".join(dict.fromkeys(_of_paper(reference.load())["source"])), study.setting_of(chapter.cases)
    return WORDS.table(
        chapter, "amusd_paper", notes, [case.entries for case in chapter.cases], sources=sources, setting=setting
    )


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
    arms = (paper_columns(pairs.method, method_prefill), paper_columns(pairs.baseline, baseline_prefill))
    return ratio_of(np.hstack(arms), strata_of(pairs))


# ---------------------------------------------------------------------------------------------------- published
def _of_paper(published: pd.DataFrame) -> pd.DataFrame:
    return published[published["source"].str.startswith(SOURCE)]


def _published(published: pd.DataFrame, method: str, data: str) -> dict[str, Any]:
    """The paper's README row; AMUSD over speculative from its two times."""

    def value(metric: str, of: str) -> float | None:
        rows = reference.matching(_of_paper(published), of, data)
        rows = rows[(rows["metric"] == metric) & (rows["kind"] == "readme")]
        return None if rows.empty else float(rows["value"].iloc[0])

    time, speculative = value("ms_per_token", method), value("ms_per_token", "speculative")
    return {
        "published_ms_per_token": time,
        "published_speedup": 1.0 if method == "autoregressive" and time else value("speedup", method),
        "published_over_speculative": speculative / time if method == "amusd" and time and speculative else None,
    }


# ---------------------------------------------------------------------------------------------------- power
def power(doc: Document, chapters: Sequence[Chapter[Beside]]) -> None:
    """The figure, or why there is none, and the table."""
    doc.heading(WORDS.say("power"))
    frames, drawn = chapters[0].frames, False
    for chapter in chapters:
        for group in chapter.groups:
            cells = comparisons(frames, group)
            drawing = figures_power.power_over_time(frames, group, cells) if cells else None
            if drawing is not None:
                drawing.name += f"_{chapter.number}_{group.number}" if drawn else ""
                doc.add(drawing)
                drawn = True
    if not drawn:
        doc.text(WORDS.say("no_figure", why=check_tables.why_no_energy(frames)))
    doc.add(power_table(chapters[0]))


def power_table(chapter: Chapter[Beside]) -> Table:
    """Mean watts by device and joules per token as in figure 5: our rows with a reading, then the published ones."""
    measured: list[dict[str, Any]] = []
    for case in study.cases_in(chapter.frames, chapter.groups):
        for label, of in ((str(case.facts["label"]), ""), ("autoregressive", "baseline_")):
            seconds, joules = case.energy.get(f"{of}seconds"), case.energy.get(f"{of}joules_per_token")
            if seconds and joules is not None and not (of and case.condition("baseline") != label):
                by_role = case.energy.get(f"{of}joules_by_role") or {}
                watts = {f"watts_{role}": whole / seconds for role, whole in by_role.items()}
                row = {"origin": "measured", "data": case.data, "method": label, "source": str(case.energy.get("source"))}
                measured.append(row | watts | {"joules_per_token": joules})
    rows, published = list(measured), _of_paper(reference.load())
    published = published[published["metric"].isin([column.key for column in WORDS.columns("amusd_power")])]
    for (method, data), values in published.groupby(["method", "dataset"], sort=False):
        row = {"origin": "published, other hardware", "data": data, "method": method, "source": values["source"].iloc[0]}
        rows.append(row | dict(zip(values["metric"], values["value"].astype(float), strict=True)))
    notes = [] if measured else [WORDS.say("no_row", why=check_tables.why_no_energy(chapter.frames))]
    return WORDS.table(chapter, "amusd_power", notes, rows)


STUDY = study.Study(
    **WORDS.study,
    chapters=study.by_family(cases_of, BASELINE),
    table=table_of,
    shown=(study.standard(figures_speed.forest),),
    after=power,
)
