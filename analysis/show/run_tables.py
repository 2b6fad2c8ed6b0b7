"""Tables about runs as such: overview, head to head, theory beside measurement, what was left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from types import SimpleNamespace

from specbench.analysis.derive.conditions import Group
from specbench.analysis.derive.derive import Comparison, Estimate, is_ranked, ratio_of_speedups
from specbench.analysis.derive.theory import COLUMNS as THEORY
from specbench.analysis.derive.theory import theory
from specbench.analysis.read.frames import Frames, LeftOut
from specbench.analysis.show.captions import definitions, setting
from specbench.analysis.show.members import (
    DATA,
    EMITTED,
    LOSSLESS,
    METHOD,
    PAIR,
    SPEEDUP,
    TOKENS_PER_SECOND,
    in_parts,
    members,
    ranked_rows,
)
from specbench.analysis.show.table import Column, Row, Table, row_of
from specbench.measure import stats

MAX_HEAD_TO_HEAD = 5  # methods; the table grows with their square


def overview(group: Group, comparisons: Sequence[Comparison]) -> Table:
    """One row per run: the numbers that a reader asks for first."""
    columns = [
        PAIR,
        DATA,
        METHOD,
        Column("n", "n", digits=0, of=lambda m: m.figures["num_prompts"]),
        TOKENS_PER_SECOND,
        SPEEDUP,
        Column("told_from_1", "told from 1", text=True, of=lambda m: told_from_one(group, m.comparison, m.run)),
        Column("end_to_end", "end to end", best="largest", of=lambda m: m.figures["end_to_end"]),
        Column("geomean", "geom. mean", best="largest", of=lambda m: m.figures["geomean"]),
        Column("worst5", "worst 5 %", best="largest", of=lambda m: m.figures["worst5"]),
        EMITTED,
        Column("accepted_per_round", "accepted/round", of=lambda m: m.per_round("accepted_per_round")),
        Column("acceptance_percent", "acceptance %", digits=1, of=lambda m: m.acceptance_percent),
        Column("rollbacks_per_100", "rollbacks/100 tok.", digits=1, of=lambda m: m.figures["rollbacks_per_100"]),
        LOSSLESS,
    ]
    rows: list[Row] = []
    for comparison in comparisons:
        rows += ranked_rows(columns, list(members(comparison)))
    return Table(
        "overview",
        "All runs",
        columns,
        in_parts(rows),
        "All runs under these conditions. " + setting(group.conditions, comparisons) + " "
        + definitions("speedup", "end_to_end", "tokens_per_second", "emitted_per_round", "accepted_per_round")
        + " " + definitions("acceptance_rate", "lossless", "bold")
        + " Told from 1: the interval excludes 1 and leaves the noise floor, where one was measured. Geom. mean and worst 5 %: "
        "of the speed-ups of single prompts. Rollbacks: rounds that threw drafts away, per 100 "
        "decode tokens.",
        [note for c in comparisons for note in c.notes],
    ).drop_empty_columns()  # fmt: skip


def told_from_one(group: Group, comparison: Comparison, run: int) -> str | None:
    """Whether a speed-up may be called one; None without a speed-up."""
    speed = comparison.speedup(run)
    if speed is None:
        return None
    interval = None if speed.low is None or speed.high is None else (speed.low, speed.high)
    clear, why = stats.distinguishable(interval, group.noise_floor)
    return "yes" if clear else "no: in the noise" if why and "noise" in why else "no"


def head_to_head(group: Group, comparisons: Sequence[Comparison]) -> Table:
    """The fastest ranked runs of each data set against each other, each over its own run's baseline."""
    columns = [
        PAIR,
        DATA,
        METHOD,
        Column("over", "over", text=True, of=lambda item: item.over),
        Column("ratio", "ratio of speed-ups", of=lambda item: item.ratio),
        Column("told_apart", "told apart", text=True, of=lambda item: _told_apart(item.ratio)),
    ]
    rows = []
    for comparison in comparisons:
        runs = [m for m in members(comparison) if is_ranked(m.facts) and m.facts["speedup"] == m.facts["speedup"]]
        runs.sort(key=lambda m: -m.facts["speedup"])
        for one, other in combinations(runs[:MAX_HEAD_TO_HEAD], 2):
            ratio = ratio_of_speedups(comparison.pairs(one.run), comparison.pairs(other.run))
            if ratio is not None:
                item = SimpleNamespace(facts=one.facts, over=str(other.facts["label"]), ratio=ratio)
                rows.append(row_of(columns, item))
    return Table(
        "head_to_head",
        "Head to head",
        columns,
        rows,
        "Ratio of two methods' speed-ups, each over the baseline of its own run, paired by prompt: drawn together in the "
        "bootstrap. The two runs were not interleaved, so the ratio trusts that each run's own baseline took out the machine's "
        "state; method@baseline=<method> measures the same in one run. " + setting(group.conditions, comparisons),
    )


def _told_apart(ratio: Estimate) -> str:
    if ratio.low is None or ratio.high is None:
        return "no interval"
    return "no (contains 1)" if ratio.low <= 1 <= ratio.high else "yes"


def theory_table(frames: Frames, group: Group, comparisons: Sequence[Comparison]) -> Table:
    """The formulas at each run's own times and acceptance, beside what it reached."""

    def said(key: str, label: str, heading: str = "", digits: int = 2, text: bool = False) -> Column:
        return Column(key, label, heading, text=text, digits=digits, of=lambda item: item.line[key])

    def measured(item: SimpleNamespace) -> Estimate:
        return Estimate(item.line["speedup_measured"], item.facts["speedup_low"], item.facts["speedup_high"])

    columns = [
        PAIR,
        DATA,
        METHOD,
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
        said("bound_free_running", "bound t_AR/t_draft", "speed-up in theory"),
        Column("speedup_measured", "measured", "reached", of=measured),
        said("schedule", "schedule", "reached", text=True),
        said("reached", "share", "reached"),
    ]
    items = (SimpleNamespace(facts=group.runs.loc[run], line=line) for run, line in theory(frames, group.runs.index).iterrows())
    return Table(
        "theory",
        "Theory beside measurement",
        columns,
        [row_of(columns, item, ranked=False) for item in items],
        "What the formulas promise at the run's own times and acceptance. "
        + " ".join(f"{column.label}: {THEORY[column.key]}." for column in columns if column.key in THEORY)
        + " " + setting(group.conditions, comparisons),
        ["For a free-running draft the share is of the bound, which no acceptance below 1 can reach."],
    ).drop_empty_columns()  # fmt: skip


def left_out_table(left_out: Iterable[LeftOut]) -> Table:
    columns = [
        Column("folder", "run", text=True, of=lambda item: item.folder),
        Column("why", "left out because", text=True, of=lambda item: item.why),
    ]
    rows = [row_of(columns, item) for item in left_out]
    return Table("left_out", "Left out", columns, rows, "Runs that are in no table above, and why.")
