"""Published numbers, with their sources, beside ours; and our metric code on published aggregates.

Mean accepted tokens carry over between machines (most of Spec-Bench's two leaderboards agree within 0.03), speed-ups do not: a
published speed-up is marked with its hardware and never ranked with a measured one. Columns of reference_values.csv: source,
published_name, method (in this project's words), models, dataset, hardware, metric, value, n, kind (paper, leaderboard,
readme, recomputed from raw files), note.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd

from specbench.analysis.derive.conditions import Group
from specbench.analysis.derive.derive import Comparison
from specbench.analysis.derive.ranking import is_ranked
from specbench.analysis.show.captions import definitions, setting
from specbench.analysis.show.cells import Column, row_of
from specbench.analysis.show.members import members
from specbench.analysis.show.table import Table
from specbench.measure import metrics
from specbench.measure.metrics import RoundTable
from specbench.measure.records.events import Round

FILE = "reference_values.csv"
SHOWN = ("speedup", "emitted_per_round", "accepted_run_length", "ms_per_token")
PUBLISHED = "published"  # on other hardware
OURS = "measured"


def load() -> pd.DataFrame:
    """The shipped file; `value` is a number, everything else text."""
    with (files("specbench.analysis") / FILE).open("r", encoding="utf-8") as file:
        return pd.read_csv(file, dtype={"n": "string", "note": "string", "hardware": "string"}, keep_default_na=False)


def matching(reference: pd.DataFrame, method: str, data: str) -> pd.DataFrame:
    """Published rows of a method on a data set, whole-set figures only. Stand-in data match the set that they stand in for."""
    return reference[
        (reference["method"] == method)
        & (reference["dataset"] == data.removesuffix("-standin"))
        & reference["metric"].isin(SHOWN)
    ]


def reference_table(group: Group, comparisons: Sequence[Comparison]) -> Table:
    """For each data set and method that we ran and somebody published: our row, then theirs."""
    reference = load()
    items: list[dict[str, Any]] = []
    notes: list[str] = []
    for comparison in comparisons:
        for member in members(comparison):
            facts = member.facts
            if matching(reference, str(facts["method"]), comparison.data).empty:
                continue
            ours = {
                "data": comparison.data,
                "method": str(facts["label"]),
                "origin": OURS if is_ranked(facts) else f"{OURS}, not ranked",
                "models": comparison.pair,
                "hardware": str(facts["machine"]),
                "speedup": member.speedup,
                "ms_per_token": member.ms_per_token,
                **{name: member.per_round(name) for name in ("emitted_per_round", "accepted_run_length")},
            }
            if ours not in items:
                items.append(ours)
        shown = set(comparison.runs["method"].astype(str))
        items += [item for method in sorted(shown) for item in _published(matching(reference, method, comparison.data))]
        if comparison.data.endswith("-standin") and items:
            real = comparison.data.removesuffix("-standin")
            notes.append(f"Published figures are for {real} itself; ours are for {comparison.data}, other prompts.")
    columns = [
        *(Column(name, name, text=True, merge=name == "data") for name in ("data", "method", "origin", "models", "hardware")),
        Column("emitted_per_round", "emitted/round", "carries over"),
        Column("accepted_run_length", "accepted run", "carries over"),
        Column("speedup", "speed-up", "does not carry over"),
        Column("ms_per_token", "ms/token", "does not carry over"),
    ]
    sources = list(dict.fromkeys(item["source"] for item in items if "source" in item))
    for item in items:  # a source and its remarks are long: below the table, under a number
        if "source" in item:
            item["origin"] = f"{PUBLISHED} [{sources.index(item['source']) + 1}]"
    rows = [row_of(columns, item, ranked=False) for item in items]
    caption = (
        "Published numbers with their sources. They were measured on other hardware, with other models and estimators: "
        "mean accepted tokens of the same pair on the same prompts carry over between machines, speed-ups and "
        f"times do not. No row is ranked against another. {setting(group.conditions, comparisons)} "
        + definitions("emitted_per_round", "accepted_run_length", "ms_per_token")
    )
    notes = [*dict.fromkeys(notes), *_sources(sources, items)]
    return Table("reference", "Published numbers beside ours", columns, rows, caption, notes).drop_empty_columns()


def _sources(sources: Sequence[str], items: Sequence[dict[str, Any]]) -> Iterator[str]:
    """`[1] source: what is remarked of its numbers`."""
    for number, source in enumerate(sources, start=1):
        own = (item["remark"] for item in items if item.get("source") == source and item["remark"])
        remarks = list(dict.fromkeys(remark for text in own for remark in text.split("; ")))
        yield f"[{number}] {source}{': ' if remarks else ''}{'; '.join(remarks)}"


def _published(published: pd.DataFrame) -> Iterator[dict[str, Any]]:
    keys = {"source": "source", "published_name": "method", "models": "models", "dataset": "data", "hardware": "hardware"}
    for key, values in published.groupby(list(keys), sort=False):
        facts = dict(zip(keys.values(), key, strict=True))
        yield facts | {
            "hardware": facts["hardware"] or "not stated",
            "remark": "; ".join(dict.fromkeys(note for note in values["note"] if note)) or None,
            **dict(zip(values["metric"], values["value"].astype(float), strict=True)),
        }


# ---------------------------------------------------------------------------------------------------- checks of the metric code
def rounds_with(emitted: int, rounds: int, drafted: int = 0) -> RoundTable:
    """A table with these totals, spread as evenly as whole tokens allow: pooled figures depend on totals alone."""
    spread = [np.diff(np.linspace(0, total, rounds + 1).round().astype(int)) for total in (emitted, drafted)]
    made = [
        Round(i * 1.0, i + 1.0, num_drafted=int(d), num_accepted=int(e) - 1, num_emitted=int(e), draft_depth=int(d))
        for i, (e, d) in enumerate(zip(*spread, strict=True))
    ]
    return RoundTable.of({("aggregate", 0, 0, "method"): made})


def reproduced() -> Table:
    """Our metrics on the aggregates that others published, beside the figures that they state."""
    columns = [
        Column("source", "source", merge=True, text=True),
        *(Column(name, name, text=True) for name in ("models", "metric", "aggregate")),
        Column("published", "published", digits=3),
        Column("ours", "this code", digits=3),
    ]
    reference = load()
    rows = []
    for (source, models), values in reference.groupby(["source", "models"], sort=False):
        stated = dict(zip(values["metric"], values["value"].astype(float), strict=True)) if values["metric"].is_unique else {}
        if "rounds" not in stated:
            continue
        count = int(stated["rounds"])
        tokens = int(stated.get("tokens") or stated["accepted"] + stated["rounds"])
        table = rounds_with(tokens, count, int(stated.get("drafted", 0)))
        found = {"emitted_per_round": metrics.emitted_per_round(table)["pooled"]}
        if "drafted" in stated:
            found["acceptance_rate"] = metrics.acceptance_rate(table)
        item = {"source": source, "models": models, "aggregate": f"{tokens:,} tokens in {count:,} rounds"}
        for metric, value in found.items():
            own = {"metric": metric, "published": stated[metric], "ours": value}
            rows.append(row_of(columns, item | own, ranked=False))
    caption = "Totals that others published, counted by the functions that counted every number of this report."
    title = "Published aggregates through this project's metric code"
    return Table("reference_reproduced", title, columns, rows, caption)
