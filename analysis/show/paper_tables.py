"""The comparison in the shapes of the papers: Spec-Bench's, AMUSD's and PEARL's table.

Rows that may not be ranked (lossy methods, runs whose output was not the target's) stand in a part of their own and never
compete for bold print.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from specbench.analysis.derive.conditions import Group
from specbench.analysis.derive.derive import Comparison, Estimate, agreement, is_lossy, is_ranked
from specbench.analysis.show.captions import definitions, setting, verdict_text
from specbench.analysis.show.table import Cell, Column, Row, Table, mark_best

LOSSY_PART = "Lossy methods (other text than the target's: not ranked)"
WRONG_PART = "Output differs from the target's although the method claims otherwise: not ranked"
REPEATS_BELOW = 5  # so few prompts in a category that its interval says little


def cell(estimate: Estimate | None, digits: int = 2) -> Cell:
    return Cell(None) if estimate is None else Cell.of(estimate.value, estimate.low, estimate.high, digits)


def number(value: float | None, digits: int = 2) -> Cell:
    return Cell.of(value, digits=digits)


def part_of(row: pd.Series) -> str:
    """The section of a run's row: none for ranked ones."""
    return "" if is_ranked(row) else LOSSY_PART if is_lossy(row) else WRONG_PART


def sort_parts(rows: list[Row]) -> list[Row]:
    """Ranked rows first; the order is kept otherwise."""
    return sorted(rows, key=lambda row: ("", WRONG_PART, LOSSY_PART).index(row.section))


def baseline_rates(comparison: Comparison) -> dict[int, float]:
    """The baseline's decode tokens/s by run: every run has measured its own, and they are never averaged."""
    rates = {run: comparison.rates(run)[1] for run in comparison.runs.index}
    return {run: rate for run, rate in rates.items() if rate is not None}


def method_by_category(group: Group, comparison: Comparison) -> Table:
    """Spec-Bench's shape: a row per method, a column per category with its speed-up, then overall and emitted per round."""
    categories = list(
        dict.fromkeys(
            category for run in comparison.runs.index for category in comparison.pairs(run).categories if category is not None
        )
    )
    rows: list[Row] = []
    for run, facts in comparison.runs.iterrows():
        if comparison.speedup(run) is None:
            continue
        by_category = comparison.by_category(run) if categories else {}
        cells = {
            "method": Cell(str(facts["label"])),
            **{name: cell(by_category.get(name)) for name in categories},
            "overall": cell(comparison.speedup(run)),
            "emitted_per_round": number(comparison.per_round(run, "emitted_per_round")),
            "tokens_per_second": number(comparison.rates(run)[0], 1),
            "lossless": Cell(verdict_text(facts)),
        }
        rows.append(Row(cells, part_of(facts), is_ranked(facts)))
    for key in (*categories, "overall", "emitted_per_round", "tokens_per_second"):
        mark_best(rows, key)
    counts = comparison.pairs(comparison.runs.index[0]).categories if len(comparison.runs) else ()
    columns = [
        Column("method", "method", text=True),
        *(Column(name, f"{name} (n={counts.count(name)})", "speed-up by category") for name in categories),
        Column("overall", "speed-up", "overall"),
        Column("emitted_per_round", "emitted/round", "overall"),
        Column("tokens_per_second", "tokens/s", "overall"),
        Column("lossless", "lossless", text=True),
    ]
    small = [name for name in categories if counts.count(name) < REPEATS_BELOW]
    notes = [f"fewer than {REPEATS_BELOW} prompts in {', '.join(small)}: their intervals say little"] if small else []
    return Table(
        f"method_by_category_{slug(comparison.pair)}_{slug(comparison.data)}",
        f"Methods by category: {comparison.data}, {comparison.pair}",
        columns,
        sort_parts(rows),
        f"Speed-up over the baseline by category on {comparison.data} with {comparison.pair}. "
        + setting(group.conditions, [comparison])
        + " "
        + definitions("speedup", "emitted_per_round", "tokens_per_second", "lossless", "bold"),
        [*comparison.notes, *notes],
    )


def dataset_by_method(group: Group, comparisons: Sequence[Comparison]) -> list[Table]:
    """AMUSD's shape, one table per pair: data set and method down, ms/token and speed-up across, the baseline first."""
    tables = []
    baseline = str(group.conditions.get("baseline"))
    for pair in dict.fromkeys(c.pair for c in comparisons):
        own = [c for c in comparisons if c.pair == pair and any(c.speedup(run) is not None for run in c.runs.index)]
        if not own:
            continue
        rows = [row for c in own for row in _dataset_rows(c, baseline)]
        columns = [
            Column("data", "data", merge=True, text=True),
            Column("method", "method", text=True),
            Column("ms_per_token", "ms/token"),
            Column("speedup", "speed-up"),
            Column("emitted_per_round", "emitted/round"),
            Column("lossless", "lossless", text=True),
        ]
        tables.append(
            Table(
                f"dataset_by_method_{slug(pair)}",
                f"Data sets by method: {pair}",
                columns,
                rows,
                f"Time per token and speed-up by data set with {pair}. "
                + setting(group.conditions, own)
                + " "
                + definitions("ms_per_token", "speedup", "emitted_per_round", "lossless", "bold")
                + " Every run measures its own baseline; where several runs did, its row shows their span, not a mean.",
                [note for c in own for note in c.notes],
            ).drop_empty_columns()
        )
    return tables


def _dataset_rows(comparison: Comparison, baseline: str) -> list[Row]:
    rates = [1e3 / rate for rate in baseline_rates(comparison).values()]
    ends = (f"{min(rates):.2f}", f"{max(rates):.2f}")
    span = number(rates[0]) if ends[0] == ends[1] else Cell(f"{ends[0]} to {ends[1]}")
    first = {"data": Cell(comparison.data), "method": Cell(baseline), "ms_per_token": span, "speedup": number(1.0)}
    made: list[Row] = []
    for run, facts in comparison.runs.iterrows():
        rate, speedup = comparison.rates(run)[0], comparison.speedup(run)
        if rate and speedup is not None:
            label = str(facts["label"])
            cells = {
                "data": Cell(comparison.data),
                "method": Cell(label if is_ranked(facts) else f"{label} (not ranked)"),
                "ms_per_token": number(1e3 / rate),
                "speedup": cell(speedup),
                "emitted_per_round": number(comparison.per_round(run, "emitted_per_round")),
                "lossless": Cell(verdict_text(facts)),
            }
            made.append(Row(cells, ranked=is_ranked(facts)))
    mark_best(made, "ms_per_token", largest=False)
    mark_best(made, "speedup")
    return [Row(first, ranked=False), *sorted(made, key=lambda row: not row.ranked)]


def pair_by_dataset(group: Group, comparisons: Sequence[Comparison]) -> Table:
    """PEARL's shape: pair and method down, data sets across, with tokens/s, speed-up and mean accepted tokens."""
    data = list(dict.fromkeys(c.data for c in comparisons))
    rows: list[Row] = []
    for pair in dict.fromkeys(c.pair for c in comparisons):
        own = {c.data: c for c in comparisons if c.pair == pair}
        facts = pd.concat([c.runs for c in own.values()])
        made: list[Row] = []
        for (label, part), runs in facts.assign(part=[part_of(r) for _, r in facts.iterrows()]).groupby(
            ["label", "part"], sort=False
        ):
            cells = {"pair": Cell(pair), "method": Cell(str(label))}
            for run, row in runs.iterrows():
                name, c = str(row["data_label"]), own[str(row["data_label"])]
                cells[f"{name} tokens_per_second"] = number(c.rates(run)[0], 1)
                cells[f"{name} speedup"] = cell(c.speedup(run))
                cells[f"{name} emitted_per_round"] = number(c.per_round(run, "emitted_per_round"))
                cells[f"{name} accepted_run_length"] = number(c.per_round(run, "accepted_run_length"))
            verdicts = [verdict_text(row) for _, row in runs.iterrows()]
            cells["lossless"] = Cell(verdicts[0] if len(set(verdicts)) == 1 else "; ".join(dict.fromkeys(verdicts)))
            made.append(Row(cells, str(part), not part))
        for name in data:
            for key in ("tokens_per_second", "speedup", "emitted_per_round", "accepted_run_length"):
                mark_best(made, f"{name} {key}")
        rows += made
    columns = [Column("pair", "pair", merge=True, text=True), Column("method", "method", text=True)]
    for name in data:
        columns += [
            Column(f"{name} tokens_per_second", "tokens/s", name),
            Column(f"{name} speedup", "speed-up", name),
            Column(f"{name} emitted_per_round", "emitted/round", name),
            Column(f"{name} accepted_run_length", "accepted run", name),
        ]
    columns.append(Column("lossless", "lossless", text=True))
    return Table(
        "pair_by_dataset",
        "Pairs by data set",
        columns,
        sort_parts(rows),
        "Decode tokens/s, speed-up and mean accepted tokens by pair and data set. "
        + setting(group.conditions, comparisons)
        + " "
        + definitions("tokens_per_second", "speedup", "emitted_per_round", "accepted_run_length", "lossless", "bold"),
        [note for c in comparisons for note in c.notes],
    ).drop_empty_columns()


def lossy_methods(group: Group, comparisons: Sequence[Comparison]) -> Table:
    """Lossy methods by themselves, each with how near its text stays to the baseline's."""
    rows = []
    for comparison in comparisons:
        for run, facts in comparison.runs.iterrows():
            if not is_lossy(facts):
                continue
            near = agreement(str(facts["folder"]), comparison.prompts if comparison.restricted else None)
            rows.append(
                Row(
                    {
                        "method": Cell(str(facts["label"])),
                        "pair": Cell(comparison.pair),
                        "data": Cell(comparison.data),
                        "speedup": cell(comparison.speedup(run)),
                        "emitted_per_round": number(comparison.per_round(run, "emitted_per_round")),
                        "identical_share": number(near["identical"]),
                        "prefix_share": number(near["prefix"]),
                    },
                    ranked=False,
                )
            )
    columns = [
        Column("method", "method", text=True),
        Column("pair", "pair", text=True),
        Column("data", "data", text=True),
        Column("speedup", "speed-up"),
        Column("emitted_per_round", "emitted/round"),
        Column("identical_share", "identical outputs"),
        Column("prefix_share", "common prefix"),
    ]
    return Table(
        "lossy_methods",
        "Lossy methods",
        columns,
        rows,
        "Methods that keep neither the target's text nor its law; no ranking with the others. Identical outputs: share of "
        "outputs equal to the baseline's. Common prefix: mean length of the common beginning over the longer output. Both say "
        "how near the text stays, not how good it is. " + setting(group.conditions, comparisons) + " "
        + definitions("speedup", "emitted_per_round"),
    )  # fmt: skip


def slug(name: str) -> str:
    return "".join(character if character.isalnum() else "_" for character in name).strip("_").lower() or "unnamed"
