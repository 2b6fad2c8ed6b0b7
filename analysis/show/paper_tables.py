"""The comparison in the shapes of the papers: Spec-Bench's, AMUSD's and PEARL's table.

Rows that may not be ranked (lossy methods, runs whose output was not the target's or whose number a warning makes unusable)
stand in parts of their own and never compete for bold print.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace

from specbench.analysis.derive.conditions import Group
from specbench.analysis.derive.derive import Comparison
from specbench.analysis.derive.ranking import is_lossy, is_ranked
from specbench.analysis.show.captions import definitions, setting, slug, verdict_text
from specbench.analysis.show.cells import Cell, Column, Row, mark_columns, row_of
from specbench.analysis.show.members import (
    ACCEPTED_RUN,
    BASELINE_RIGHT,
    DATA,
    EMITTED,
    LOSSLESS,
    METHOD,
    MS_PER_TOKEN,
    PAIR,
    RIGHT,
    SPEEDUP,
    TOKENS_PER_SECOND,
    Member,
    in_parts,
    members,
    part_of,
    ranked_rows,
)
from specbench.analysis.show.table import Table

REPEATS_BELOW = 5  # so few prompts in a category that its interval says little


def has_categories(comparison: Comparison) -> bool:
    return any(name is not None for run in comparison.runs.index for name in comparison.pairs(run).categories)


def method_by_category(group: Group, comparison: Comparison) -> Table:
    """Spec-Bench's shape: a row per method, a column per category with its speed-up, then overall and emitted per round."""
    every = (name for run in comparison.runs.index for name in comparison.pairs(run).categories if name is not None)
    categories = list(dict.fromkeys(every))
    runs = [m for m in members(comparison) if m.speedup is not None]
    by_category = {m.run: comparison.by_category(m.run) if categories else {} for m in runs}
    counts = comparison.pairs(comparison.runs.index[0]).categories if len(comparison.runs) else ()

    def category(name: str) -> Column:
        label, heading = f"{name} (n={counts.count(name)})", "speed-up by category"
        return Column(name, label, heading, best="largest", of=lambda m: by_category[m.run].get(name))

    overall = [replace(SPEEDUP, key="overall"), EMITTED, TOKENS_PER_SECOND]
    columns = [METHOD, *map(category, categories), *(replace(c, group="overall") for c in overall), LOSSLESS]
    small = [name for name in categories if counts.count(name) < REPEATS_BELOW]
    notes = [f"fewer than {REPEATS_BELOW} prompts in {', '.join(small)}: their intervals say little"] if small else []
    caption = (
        f"Speed-up over the baseline by category on {comparison.data} with {comparison.pair}. "
        f"{setting(group.conditions, [comparison])} "
        f"{definitions('speedup', 'emitted_per_round', 'tokens_per_second', 'lossless', 'bold')}"
    )
    name = f"method_by_category_{slug(comparison.pair, comparison.data)}"
    title = f"Methods by category: {comparison.data}, {comparison.pair}"
    return Table(name, title, columns, in_parts(ranked_rows(columns, runs)), caption, [*comparison.notes, *notes])


def in_one_column(group: Group, comparisons: Sequence[Comparison]) -> Table:
    """What a paper's column has room for: method, speed-up, tokens of a round, lossless; a section for each data set."""
    several = len({c.pair for c in comparisons}) > 1
    short = replace(LOSSLESS, of=lambda m: verdict_text(m.facts).partition(" (")[0])
    columns = [METHOD, SPEEDUP, replace(EMITTED, label="emitted"), short]
    rows = []
    for c in comparisons:
        place = f"{c.data}, {c.pair}" if several else c.data
        own = in_parts(ranked_rows(columns, [m for m in members(c) if m.speedup is not None]))
        rows += [replace(row, section=place + (", not ranked" if row.section else "")) for row in own]
    pair = "" if several else f" with {comparisons[0].pair}"
    caption = (
        f"Speed-up over the baseline{pair}; emitted: tokens per target forward. {setting(group.conditions, comparisons)} "
        f"{definitions('speedup', 'emitted_per_round', 'lossless', 'bold')}"
    )
    return Table("in_one_column", "In one column of a paper", columns, rows, caption, in_column=True)


def dataset_by_method(group: Group, comparisons: Sequence[Comparison]) -> list[Table]:
    """AMUSD's shape, one table per pair: data set and method down, ms/token and speed-up across, the baseline first."""
    tables = []
    baseline = str(group.conditions.get("baseline"))
    for pair in dict.fromkeys(c.pair for c in comparisons):
        own = [c for c in comparisons if c.pair == pair and any(c.speedup(run) is not None for run in c.runs.index)]
        if not own:
            continue
        method = replace(METHOD, of=lambda m: str(m.facts["label"]) + ("" if is_ranked(m.facts) else " (not ranked)"))
        columns = [DATA, method, MS_PER_TOKEN, SPEEDUP, replace(EMITTED, best=""), LOSSLESS]
        rows = [row for c in own for row in _dataset_rows(columns, c, baseline)]
        caption = (
            f"Time per token and speed-up by data set with {pair}. {setting(group.conditions, own)} "
            f"{definitions('ms_per_token', 'speedup', 'emitted_per_round', 'lossless', 'bold')} Every run measures its own "
            "baseline; where several runs did, its row shows their span, not a mean."
        )
        name, notes = f"dataset_by_method_{slug(pair)}", [note for c in own for note in c.notes]
        tables.append(Table(name, f"Data sets by method: {pair}", columns, rows, caption, notes).drop_empty_columns())
    return tables


def _dataset_rows(columns: Sequence[Column], comparison: Comparison, baseline: str) -> list[Row]:
    """The baseline's row, with the span of what every run measured of it, and a row for each method."""
    rates = [comparison.rates(run)[1] for run in comparison.runs.index]
    times = [1e3 / rate for rate in rates if rate is not None]
    ends = (f"{min(times):.2f}", f"{max(times):.2f}")
    span = Cell(times[0]) if ends[0] == ends[1] else Cell(f"{ends[0]} to {ends[1]}")
    first = {"data": Cell(comparison.data), "method": Cell(baseline), "ms_per_token": span, "speedup": Cell(1.0)}
    runs = [m for m in members(comparison) if m.tokens_per_second and m.speedup is not None]
    made = [row_of(columns, m, ranked=is_ranked(m.facts)) for m in runs]
    mark_columns(columns, made)
    return [Row(first, ranked=False), *sorted(made, key=lambda row: not row.ranked)]


def pair_by_dataset(group: Group, comparisons: Sequence[Comparison]) -> Table:
    """PEARL's shape: pair and method down, data sets across, with tokens/s, speed-up and mean accepted tokens."""
    data = list(dict.fromkeys(c.data for c in comparisons))

    def first(row: dict[str, Member]) -> Member:
        return next(iter(row.values()))

    def verdicts(row: dict[str, Member]) -> str:
        return "; ".join(dict.fromkeys(verdict_text(m.facts) for m in row.values()))

    columns = [PAIR.of_part(first), METHOD.of_part(first)]  # a row: a method's runs by data set
    columns += [
        column.of_part(operator.methodcaller("get", name), key=f"{name} {column.key}", group=name)
        for name in data
        for column in (TOKENS_PER_SECOND, SPEEDUP, EMITTED, ACCEPTED_RUN)
    ]
    columns.append(replace(LOSSLESS, of=verdicts))
    rows: list[Row] = []
    for pair in dict.fromkeys(c.pair for c in comparisons):
        found: dict[tuple[str, str], dict[str, Member]] = {}
        for m in members(*(c for c in comparisons if c.pair == pair)):
            found.setdefault((str(m.facts["label"]), part_of(m.facts)), {})[m.comparison.data] = m
        made = [row_of(columns, row, part, not part) for (_, part), row in found.items()]
        mark_columns(columns, made)
        rows += made
    caption = (
        f"Decode tokens/s, speed-up and mean accepted tokens by pair and data set. {setting(group.conditions, comparisons)} "
        + definitions("tokens_per_second", "speedup", "emitted_per_round", "accepted_run_length", "lossless", "bold")
    )
    notes = [note for c in comparisons for note in c.notes]
    return Table("pair_by_dataset", "Pairs by data set", columns, in_parts(rows), caption, notes).drop_empty_columns()


def lossy_methods(group: Group, comparisons: Sequence[Comparison]) -> Table:
    """Lossy methods by themselves, each with how near its text stays to the baseline's."""
    columns = [
        METHOD,
        replace(PAIR, merge=False),
        replace(DATA, merge=False),
        SPEEDUP,
        EMITTED,
        Column("identical_share", "identical outputs", of=lambda m: m.agreement["identical"]),
        Column("prefix_share", "common prefix", of=lambda m: m.agreement["prefix"]),
        RIGHT,
        BASELINE_RIGHT,
    ]
    lossy = [m for m in members(*comparisons) if is_lossy(m.facts)]
    rows = [row_of(columns, m, ranked=False) for m in lossy]
    caption = (
        "Methods that keep neither the target's text nor its law; no ranking with the others. Identical outputs: share of "
        "outputs equal to the baseline's. Common prefix: mean length of the common beginning over the longer output. Both say "
        "how near the text stays, not how good it is; right answers do, where the data set has answers and they were graded. "
        f"{setting(group.conditions, comparisons)} {definitions('speedup', 'emitted_per_round')}"
    )
    return Table("lossy_methods", "Lossy methods", columns, rows, caption).drop_empty_columns()
