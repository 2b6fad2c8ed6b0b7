"""Tables about runs as such: overview, head to head, theory beside measurement, what was left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

from specbench.analysis.derive.conditions import Group
from specbench.analysis.derive.derive import Comparison, Estimate, is_ranked, ratio_of_speedups
from specbench.analysis.derive.theory import COLUMNS as THEORY
from specbench.analysis.derive.theory import theory
from specbench.analysis.read.frames import Frames, LeftOut
from specbench.analysis.show.captions import definitions, setting, verdict_text
from specbench.analysis.show.paper_tables import cell, number, part_of, sort_parts
from specbench.analysis.show.table import Cell, Column, Row, Table, mark_best
from specbench.measure import stats

MAX_HEAD_TO_HEAD = 5  # methods; the table grows with their square


def overview(group: Group, comparisons: Sequence[Comparison]) -> Table:
    """One row per run: the numbers that a reader asks for first."""
    rows: list[Row] = []
    for comparison in comparisons:
        made: list[Row] = []
        for run, facts in comparison.runs.iterrows():
            figures = comparison.figures(run)
            cells = {
                "pair": Cell(comparison.pair),
                "data": Cell(comparison.data),
                "method": Cell(str(facts["label"])),
                "n": number(figures["num_prompts"], 0),
                "tokens_per_second": number(comparison.rates(run)[0], 1),
                "speedup": cell(comparison.speedup(run)),
                "told_from_1": Cell(told_from_one(group, comparison, run)),
                **{name: number(figures[name]) for name in ("end_to_end", "geomean", "worst5")},
                **{name: number(comparison.per_round(run, name)) for name in ("emitted_per_round", "accepted_per_round")},
                "acceptance_percent": number(_percent(comparison.per_round(run, "acceptance_rate")), 1),
                "rollbacks_per_100": number(figures["rollbacks_per_100"], 1),
                "lossless": Cell(verdict_text(facts)),
            }
            made.append(Row(cells, part_of(facts), is_ranked(facts)))
        for key in ("tokens_per_second", "speedup", "end_to_end", "geomean", "worst5", "emitted_per_round"):
            mark_best(made, key)
        rows += made
    columns = [
        Column("pair", "pair", merge=True, text=True),
        Column("data", "data", merge=True, text=True),
        Column("method", "method", text=True),
        Column("n", "n"),
        Column("tokens_per_second", "tokens/s"),
        Column("speedup", "speed-up"),
        Column("told_from_1", "told from 1", text=True),
        Column("end_to_end", "end to end"),
        Column("geomean", "geom. mean"),
        Column("worst5", "worst 5 %"),
        Column("emitted_per_round", "emitted/round"),
        Column("accepted_per_round", "accepted/round"),
        Column("acceptance_percent", "acceptance %"),
        Column("rollbacks_per_100", "rollbacks/100 tok."),
        Column("lossless", "lossless", text=True),
    ]
    return Table(
        "overview",
        "All runs",
        columns,
        sort_parts(rows),
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


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def head_to_head(group: Group, comparisons: Sequence[Comparison]) -> Table:
    """The fastest ranked runs of each data set against each other, each over its own run's baseline."""
    rows = []
    for comparison in comparisons:
        runs = [run for run, facts in comparison.runs.iterrows() if is_ranked(facts) and facts["speedup"] == facts["speedup"]]
        runs.sort(key=lambda run: -comparison.runs.at[run, "speedup"])
        for one, other in combinations(runs[:MAX_HEAD_TO_HEAD], 2):
            ratio = ratio_of_speedups(comparison.pairs(one), comparison.pairs(other))
            if ratio is None:
                continue
            cells = {
                "pair": Cell(comparison.pair),
                "data": Cell(comparison.data),
                "method": Cell(str(comparison.runs.at[one, "label"])),
                "over": Cell(str(comparison.runs.at[other, "label"])),
                "ratio": cell(ratio),
                "told_apart": Cell(_told_apart(ratio)),
            }
            rows.append(Row(cells))
    columns = [
        Column("pair", "pair", merge=True, text=True),
        Column("data", "data", merge=True, text=True),
        Column("method", "method", text=True),
        Column("over", "over", text=True),
        Column("ratio", "ratio of speed-ups"),
        Column("told_apart", "told apart", text=True),
    ]
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
    frame = theory(frames, group.runs.index)
    rows = []
    for run, line in frame.iterrows():
        facts = group.runs.loc[run]
        cells = {name: Cell(str(facts[f"{name}_label"])) for name in ("pair", "data")} | {"method": Cell(str(facts["label"]))}
        for name in THEORY:
            value = line[name]
            cells[name] = Cell(value) if isinstance(value, str) else number(value, 3 if name == "alpha" else 2)
        measured = Estimate(line["speedup_measured"], facts["speedup_low"], facts["speedup_high"])
        cells["speedup_measured"] = cell(measured)
        rows.append(Row(cells, ranked=False))
    columns = [
        Column("pair", "pair", merge=True, text=True),
        Column("data", "data", merge=True, text=True),
        Column("method", "method", text=True),
        Column("alpha", "α"),
        Column("gamma", "γ"),
        Column("t_ar_ms", "t_AR", "ms"),
        Column("t_draft_ms", "t_draft", "ms"),
        Column("t_verify_ms", "t_verify", "ms"),
        Column("emitted_theory", "theory", "emitted/round"),
        Column("emitted_measured", "measured", "emitted/round"),
        Column("speedup_sequential", "sequential", "speed-up in theory"),
        Column("speedup_flat", "seq., flat", "speed-up in theory"),
        Column("speedup_lockstep", "lockstep", "speed-up in theory"),
        Column("bound_free_running", "bound t_AR/t_draft", "speed-up in theory"),
        Column("speedup_measured", "measured", "reached"),
        Column("schedule", "schedule", "reached", text=True),
        Column("reached", "share", "reached"),
    ]
    return Table(
        "theory",
        "Theory beside measurement",
        columns,
        rows,
        "What the formulas promise at the run's own times and acceptance. "
        + " ".join(f"{column.label}: {THEORY[column.key]}." for column in columns if column.key in THEORY)
        + " " + setting(group.conditions, comparisons),
        ["For a free-running draft the share is of the bound, which no acceptance below 1 can reach."],
    ).drop_empty_columns()  # fmt: skip


def left_out_table(left_out: Iterable[LeftOut]) -> Table:
    rows = [Row({"folder": Cell(item.folder), "why": Cell(item.why)}) for item in left_out]
    columns = [Column("folder", "run", text=True), Column("why", "left out because", text=True)]
    return Table("left_out", "Left out", columns, rows, "Runs that are in no table above, and why.")
