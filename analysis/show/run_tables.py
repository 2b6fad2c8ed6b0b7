"""Tables about runs as such: overview, head to head, theory beside measurement, what was left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from specbench.analysis.derive.conditions import Group
from specbench.analysis.derive.derive import Comparison, Estimate, ratio_of_speedups
from specbench.analysis.derive.ranking import is_ranked
from specbench.analysis.derive.theory import COLUMNS as THEORY
from specbench.analysis.derive.theory import theory
from specbench.analysis.read.frames import Frames, LeftOut
from specbench.analysis.read.shape import entry
from specbench.analysis.show.captions import definitions, setting
from specbench.analysis.show.cells import Column, Row, row_of
from specbench.analysis.show.members import (
    BASELINE_RIGHT,
    EMITTED,
    LOSSLESS,
    RIGHT,
    RUN,
    SPEEDUP,
    TOKENS_PER_SECOND,
    Member,
    in_parts,
    members,
    ranked_rows,
)
from specbench.analysis.show.table import Table
from specbench.config.say import counted
from specbench.measure import stats
from specbench.measure.warnings import Kind, kinds

MAX_HEAD_TO_HEAD = 5  # methods; the table grows with their square
MAX_PROVENANCE, UNKNOWN = 200, "not recorded"  # runs


def overview(group: Group, comparisons: Sequence[Comparison]) -> Table:
    """One row per run: the speeds that a reader asks for first."""
    columns = [
        *RUN,
        Column("n", "n", digits=0, of=lambda m: m.figures["num_prompts"]),
        TOKENS_PER_SECOND,
        SPEEDUP,
        Column("distinguishable", "distinguishable", text=True, of=lambda m: told_from_one(group, m.comparison, m.run)),
        Column("end_to_end", "end to end", best="largest", of=lambda m: m.figures["end_to_end"]),
        Column("geomean", "geom. mean", best="largest", of=lambda m: m.figures["geomean"]),
        Column("worst5", "worst 5 %", best="largest", of=lambda m: m.figures["worst5"]),
        RIGHT,
        BASELINE_RIGHT,
        LOSSLESS,
    ]
    words = ("speedup", "distinguishable", "end_to_end", "by_prompt", "tokens_per_second", "lossless", "bold")
    caption = f"Speed of all runs under these conditions. {setting(group.conditions, comparisons)} {definitions(*words)}"
    notes = [note for c in comparisons for note in c.notes]
    return Table("overview", "All runs", columns, _rows(columns, comparisons), caption, notes).drop_empty_columns()


def drafts(group: Group, comparisons: Sequence[Comparison]) -> Table:
    """One row per run: what became of its drafts."""
    columns = [
        *RUN,
        EMITTED,
        Column("accepted_per_round", "accepted/round", of=lambda m: m.per_round("accepted_per_round")),
        Column("acceptance_percent", "acceptance %", digits=1, of=lambda m: m.acceptance_percent),
        Column("rollbacks_per_100", "rollbacks/100 tok.", digits=1, of=lambda m: m.figures["rollbacks_per_100"]),
    ]
    words = ("emitted_per_round", "accepted_per_round", "acceptance_rate", "rollbacks", "bold")
    caption = f"Drafts of all runs under these conditions. {setting(group.conditions, comparisons)} {definitions(*words)}"
    return Table("drafts", "What became of the drafts", columns, _rows(columns, comparisons), caption).drop_empty_columns()


def _rows(columns: Sequence[Column], comparisons: Sequence[Comparison]) -> list[Row]:
    return in_parts([row for comparison in comparisons for row in ranked_rows(columns, list(members(comparison)))])


def told_from_one(group: Group, comparison: Comparison, run: int) -> str | None:
    """Whether a speed-up may be called one, by both of its intervals; None without a speed-up."""
    speed = comparison.speedup(run)
    if speed is None:
        return None
    clear, why = stats.distinguishable(speed.interval, group.noise_floor, comparison.speedup_over_repeats(run))
    reasons = {"noise": "no: in the noise", "over repeats": "no: over repeats"}
    return "yes" if clear else next((said for word, said in reasons.items() if word in (why or "")), "no")


def head_to_head(group: Group, comparisons: Sequence[Comparison]) -> Table:
    """The fastest ranked runs of each data set against each other, each over its own run's baseline."""
    columns = [
        *RUN,
        Column("over", "over", text=True, of=lambda item: item.over),
        Column("ratio", "ratio of speed-ups", of=lambda item: item.ratio),
        Column("told_apart", "interval excludes 1", text=True, of=lambda item: _told_apart(item.ratio)),
    ]
    rows = []
    for comparison in comparisons:
        runs = [m for m in members(comparison) if is_ranked(m.facts) and m.facts["speedup"] == m.facts["speedup"]]
        runs.sort(key=lambda m: -m.facts["speedup"])
        for one, other in combinations(runs[:MAX_HEAD_TO_HEAD], 2):
            ratio = ratio_of_speedups(one.pairs, other.pairs)
            if ratio is not None:
                item = SimpleNamespace(facts=one.facts, over=str(other.facts["label"]), ratio=ratio)
                rows.append(row_of(columns, item))
    caption = (
        "Ratio of two methods' speed-ups, each over the baseline of its own run, paired by prompt: drawn together in the "
        "bootstrap. The two runs were not interleaved, so the ratio trusts that each run's own baseline took out the machine's "
        "state; method@baseline=<method> measures the same in one run. "
        f"{setting(group.conditions, comparisons)}"
    )
    return Table("head_to_head", "Head to head", columns, rows, caption)


def _told_apart(ratio: Estimate) -> str:
    if ratio.interval is None:
        return "no interval"
    return "no" if ratio.interval[0] <= 1 <= ratio.interval[1] else "yes"


def theory_table(frames: Frames, group: Group, comparisons: Sequence[Comparison]) -> Table:
    """The formulas at each run's own times and acceptance, beside what it reached."""
    lines = theory(frames, group.runs.index)

    def said(key: str, label: str, heading: str = "", digits: int = 2, text: bool = False) -> Column:
        return Column(key, label, heading, text=text, digits=digits, of=lambda m: lines.at[m.run, key])

    def measured(m: Member) -> Estimate:
        return Estimate(lines.at[m.run, "speedup_measured"], m.facts["speedup_low"], m.facts["speedup_high"])

    columns = [
        *RUN,
        said("alpha", "α", digits=3),
        said("gamma", "γ"),
        said("t_ar_ms", "t_AR", "ms"),
        said("t_draft_ms", "t_draft", "ms"),
        said("t_verify_ms", "t_verify", "ms"),
        said("emitted_theory", "theory", "emitted/round"),
        said("emitted_measured", "measured", "emitted/round"),
        said("speedup_sequential", "sequential", "speed-up in theory"),
        said("speedup_flat", "seq., flat", "speed-up in theory"),
        said("speedup_lockstep", "lockstep", "speed-up in theory"),
        said("speedup_free_running", "free-running", "speed-up in theory"),
        said("bound_free_running", "bound t_AR/t_draft", "speed-up in theory"),
        Column("speedup_measured", "measured", "reached", of=measured),
        said("schedule", "schedule", "reached", text=True),
        said("reached", "share", "reached"),
    ]
    rows = [row_of(columns, m, ranked=False) for m in members(*comparisons) if m.run in lines.index]
    words = " ".join(f"{column.label}: {THEORY[column.key]}." for column in columns if column.key in THEORY)
    caption = (
        f"What the formulas promise at the run's own times and acceptance. {words} {setting(group.conditions, comparisons)}"
    )
    notes = ["Where a run's options do not say how its free-running draft is scheduled, the share is of the bound."]
    return Table("theory", "Theory beside measurement", columns, rows, caption, notes).drop_empty_columns()


def left_out_table(left_out: Iterable[LeftOut]) -> Table:
    folder = Column("folder", "run", text=True, of=lambda item: item.folder)
    columns = [folder, Column("why", "left out because", text=True, of=lambda item: item.why)]
    rows = [row_of(columns, item) for item in left_out]
    return Table("left_out", "Left out", columns, rows, "Runs that are in no table above, and why.")


def warnings_table(frames: Frames) -> Table:
    """What the runs warn of, a row a kind, what makes a number unusable first."""
    said = {
        Path(str(frames.runs.at[run, "folder"])).name: list(map(str, summary.get("warnings", ())))
        for run, summary in frames.summaries.items()
    }

    def who(kind: Kind) -> str:
        more = f" and {len(kind.sources) - 1} more" if len(kind.sources) > 1 else ""
        return f"all {len(said)} runs" if len(kind.sources) == len(said) > 1 else f"{kind.sources[0]}{more}"

    columns = [
        Column("level", "level", merge=True, text=True, of=lambda kind: kind.level),
        Column("warning", "warning", text=True, of=lambda kind: kind.text),
        Column("runs", "said by", text=True, of=who),
    ]
    caption = (
        "Unusable: the number does not mean what it seems to mean. Doubtful: it may lie beside the truth by more than its "
        "interval says. Usual: the intervals or captions already allow for it. Numbers that differ between runs stand as spans."
    )
    return Table("warnings", "Warnings of the runs", columns, [row_of(columns, kind) for kind in kinds(said)], caption)


def provenance_table(frames: Frames) -> Table:
    """Where each run comes from; what is the same for all is said once."""

    def code(facts: Mapping[str, Any]) -> str:
        dirty = " with uncommitted changes" if entry(facts, "provenance.git.dirty") else ""
        return str(entry(facts, "provenance.git.commit") or UNKNOWN)[:12] + dirty

    def packages(facts: Mapping[str, Any]) -> str:
        versions = entry(facts, "provenance.packages.versions") or {}
        return ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers") if name in versions) or UNKNOWN

    def options(facts: Mapping[str, Any]) -> str:
        return " ".join(map(str, (entry(facts, "provenance.argv") or [])[1:])) or UNKNOWN

    columns = [
        Column("folder", "run", text=True, of=lambda item: str(frames.runs.at[item[0], "folder"])),
        Column("started", "started", text=True, of=lambda item: str(item[1].get("created_at"))[:16].replace("T", " ")),
        Column("code", "code", text=True, of=lambda item: code(item[1])),
        Column("packages", "packages", text=True, of=lambda item: packages(item[1])),
        Column("options", "options", text=True, of=lambda item: options(item[1])),
    ]
    shown = list(frames.facts.items())[:MAX_PROVENANCE]
    more = [f"and {counted(len(frames.facts) - len(shown), 'more run')}"] if len(frames.facts) > len(shown) else []
    caption = "Started in UTC; options: what the command line said behind its program."
    table = Table("provenance", "Provenance", columns, [row_of(columns, item) for item in shown], caption, more)
    return table.fold("packages").fold("code").fold("options")
