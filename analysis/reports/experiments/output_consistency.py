"""Whether the text changes with the method: identity, first divergence and n-gram statistics, greedy and sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from specbench.analysis.derive.conditions import Group
from specbench.analysis.derive.derive import Comparison
from specbench.analysis.derive.families import Family, cells_of, families
from specbench.analysis.derive.outputs import (
    Agreement,
    Distance,
    Key,
    Output,
    agree,
    distance,
    distinct,
    jensen_shannon,
    read_outputs,
    same_prompts,
    total_variation,
)
from specbench.analysis.read.frames import Frames
from specbench.analysis.show.captions import setting
from specbench.analysis.show.document import Document
from specbench.analysis.show.paper_tables import number
from specbench.analysis.show.style import COLOURS, Drawing, legend_below, legend_of, new_figure, styled
from specbench.analysis.show.table import Cell, Column, Row, Table

TITLE = "Consistency of the output"
VARIED = ("decoding.temperature", "decoding.seed")
ORDERS = ((1, "tokens"), (2, "bigrams"))
NOISE = 0.05  # p-values below say that the two texts hardly come from one law
WORDS = (
    "Each row sets one arm's outputs beside another's, prompt by prompt. Identical: outputs equal id for id, all repeats. "
    "First divergence: median position, in output tokens from 0, of the first difference in outputs that differ. TV: "
    "total-variation distance of the token and bigram frequencies, pooled over prompts, first repeat (0: equal, 1: disjoint); "
    "JS: Jensen-Shannon divergence of the bigram frequencies in bits. By chance: mean TV after exchanging the two texts of a "
    "prompt at random, that is, the distance of two samples of this size from one law; p: share of exchanges at least as far "
    "apart as the texts are. "
    "Distinct-n: different n-grams over all, of the row's own text and of what it is compared with. "
)


@dataclass
class Line:
    """One comparison of two texts. wanted: same ids, same law, or None where nothing is claimed (other random numbers)."""

    data: str
    law: str
    label: str
    wanted: str | None
    agreement: Agreement
    distances: dict[int, Distance | None]
    js: Distance | None
    distinct: dict[str, float | None]

    @property
    def is_kept(self) -> bool | None:
        """Whether what is wanted was found; None where nothing is wanted or nothing could be compared."""
        if self.wanted is None or not self.agreement.compared:
            return None
        if self.wanted == "ids":
            return self.agreement.identical == self.agreement.compared
        return all(d is None or d.p_value >= NOISE / len(ORDERS) for d in self.distances.values())


def fill(doc: Document, frames: Frames) -> Table:
    """A table and a figure per machine and state of the code. Raises ValueError if no run has two arms."""
    tables: list[Table] = []
    for family in families(frames, VARIED):
        lines = lines_of(frames, family)
        if not any(line.wanted for line in lines):
            continue
        doc.heading("Output against autoregressive decoding" + (f", conditions {family.number}" if family.number > 1 else ""))
        tables.append(table_of(frames, family, lines))
        _verdict(doc, lines)
        doc.add(tables[-1])
        doc.add(figure_of(frames, family, lines))
    if not tables:
        raise ValueError("no run has a method beside its baseline: there are no two texts to compare")
    return tables[0]


def lines_of(frames: Frames, family: Family) -> list[Line]:
    """Every method against its own baseline; then the baseline under one seed against that under another."""
    lines: list[Line] = []
    baselines: dict[tuple[str, str, float], dict[int, tuple[str, dict[Key, Output]]]] = {}
    for group in sorted(family.groups, key=_law_of):
        temperature, seed = _law_of(group)
        for (pair, data), comparison in cells_of(frames, group).items():
            for run, facts in comparison.runs.iterrows():
                folder, name = str(facts["folder"]), str(group.conditions.get("baseline"))
                alone = frames.own_arm(int(run)) == "baseline" or not read_outputs(folder, "baseline")
                theirs = read_outputs(folder, frames.own_arm(int(run)) if alone else "baseline")
                if not alone or facts["method"] == name:
                    baselines.setdefault((data, pair, temperature), {}).setdefault(seed, (name, theirs))
                if not alone:
                    wanted = None if facts["claim"] == "lossy" else "law" if facts["verdict"] == "not_compared" else "ids"
                    label = str(facts["label"]).replace(" (rule=off)", "") + (f", seed {seed}" if seed and temperature else "")
                    lines.append(line(data, _law(temperature), label, wanted, read_outputs(folder, "method"), theirs))
    for (data, _, temperature), by_seed in baselines.items():
        if not temperature:
            continue  # greedy decoding draws nothing
        first, *others = sorted(by_seed)
        for other in others:
            label = f"{by_seed[other][0]}, seed {other} against seed {first}"
            lines.append(line(data, _law(temperature), label, None, by_seed[other][1], by_seed[first][1]))
    order = list(dict.fromkeys(item.data for item in lines))
    return sorted(lines, key=lambda item: (order.index(item.data), item.law != "greedy", item.law))


def line(data: str, law: str, label: str, wanted: str | None, ours: dict[Key, Output], theirs: dict[Key, Output]) -> Line:
    """The comparison of two arms' outputs, by the keys that both have."""
    pairs = [(ours[key], theirs[key]) for key in sorted(ours.keys() & theirs.keys())]
    texts = [(a.ids, b.ids) for a, b in same_prompts(ours, theirs)]
    return Line(
        data,
        law,
        label,
        wanted,
        agree(pairs),
        {n: distance(texts, n, total_variation) for n, _ in ORDERS},
        distance(texts, 2, jensen_shannon),
        {f"{side} {n}": distinct([pair[i] for pair in texts], n) for i, side in enumerate(("own", "other")) for n, _ in ORDERS},
    )


def _law_of(group: Group) -> tuple[float, int]:
    return float(group.conditions.get("decoding.temperature") or 0.0), int(group.conditions.get("decoding.seed") or 0)


def _law(temperature: float) -> str:
    return f"T={temperature:g}" if temperature else "greedy"


def _verdict(doc: Document, lines: Sequence[Line]) -> None:
    """What was wanted and found, in a sentence each, and aloud where it was not."""
    for wanted, text in (
        ("ids", "comparisons of methods that claim the baseline's own ids found every output identical"),
        ("law", "comparisons of methods that claim the baseline's law found distances that chance makes too"),
    ):
        judged = [item for item in lines if item.wanted == wanted and item.is_kept is not None]
        if judged:
            doc.text(f"{sum(bool(item.is_kept) for item in judged)} of {len(judged)} {text}.")
    for item in lines:
        if item.is_kept is False:
            why = (
                f"{item.agreement.compared - item.agreement.identical} of {item.agreement.compared} outputs differ from the "
                "baseline's (the run's lossless verdict tells numerical ties from faults)"
                if item.wanted == "ids"
                else f"its n-gram frequencies lie further from the baseline's than chance makes likely (p < {NOISE})"
            )
            doc.warning(f"{item.label}, {item.law}, {item.data}: {why}.")


_WANTED = {"ids": "same ids", "law": "same law", None: "nothing"}


def table_of(frames: Frames, family: Family, lines: Sequence[Line]) -> Table:
    rows = []
    for item in lines:
        cells = {
            "data": Cell(item.data),
            "law": Cell(item.law),
            "label": Cell(item.label),
            "wanted": Cell(_WANTED[item.wanted]),
            "identical": Cell(item.agreement.text()),
            "identical_share": number(item.agreement.share, 3),
            "first_divergence": number(item.agreement.median_position, 0),
            "js_bigrams": number(None if item.js is None else item.js.value, 3),
        }
        for n, name in ORDERS:
            found = item.distances[n]
            cells[f"tv_{name}"] = number(None if found is None else found.value, 3)
            cells[f"tv_{name}_chance"] = number(None if found is None else found.expected, 3)
            cells[f"tv_{name}_p"] = number(None if found is None else found.p_value, 3)
            cells[f"distinct_{n}"] = number(item.distinct[f"own {n}"])
            cells[f"distinct_{n}_other"] = number(item.distinct[f"other {n}"])
        rows.append(Row(cells, ranked=False))
    columns = [
        Column("data", "data", merge=True, text=True),
        Column("law", "decoding", merge=True, text=True),
        Column("label", "text", text=True),
        Column("wanted", "claimed", text=True),
        Column("identical", "identical"),
        Column("first_divergence", "first divergence"),
        *(
            Column(f"tv_{name}{key}", label, f"TV of {name}")
            for _, name in ORDERS
            for key, label in (("", "found"), ("_chance", "by chance"), ("_p", "p"))
        ),
        Column("js_bigrams", "JS of bigrams"),
        *(
            Column(f"distinct_{n}{key}", label, f"distinct-{n}")
            for n, _ in ORDERS
            for key, label in (("", "own"), ("_other", "other"))
        ),
    ]
    other = sum(item.agreement.other_prompt for item in lines)
    notes = [f"{other} pairs of outputs were not compared: their prompts differ, because the conversation before did"]
    return Table(
        family.table_name("output_consistency"),
        "Output against autoregressive decoding",
        columns,
        rows,
        f"{WORDS}Rows that claim nothing set the baseline beside itself under another seed: as far as two samples of the law "
        "itself lie apart. " + _setting(frames, family),
        notes if other else [],
    ).drop_empty_columns()


def _setting(frames: Frames, family: Family) -> str:
    """n and hardware; the laws are in the rows."""
    group = family.groups[0]
    found: list[Comparison] = list(cells_of(frames, group).values())
    text = setting(group.conditions, found)
    law = _law(_law_of(group)[0])
    return text.replace(f"; {law}, ", "; ") if found else ""


def figure_of(frames: Frames, family: Family, lines: Sequence[Line]) -> Drawing:
    """Each comparison's distance beside what chance makes of it, and its share of identical outputs."""
    frame = pd.DataFrame(
        [
            {
                "data": item.data,
                "decoding": item.law,
                "text": item.label,
                "identical": np.nan if item.agreement.share is None else item.agreement.share,
                **{
                    f"tv_{name}{key}": np.nan if found is None else getattr(found, part)
                    for n, name in ORDERS
                    for found in [item.distances[n]]
                    for key, part in (("", "value"), ("_chance", "expected"), ("_chance_upper", "upper"))
                },
            }
            for item in lines
        ]
    )
    places, ticks, y = [], list[tuple[float, str, bool]](), 0.0
    for i, item in enumerate(lines):
        if i == 0 or (item.data, item.law) != (lines[i - 1].data, lines[i - 1].law):
            y += 0.3 if i else 0.0
            ticks.append((y, f"{item.data}, {item.law}", True))
            y += 1
        ticks.append((y, item.label, False))
        places.append(y)
        y += 1
    with styled():
        figure, axes = new_figure(1, 3, height=1.0 + 0.22 * y, sharey=True, width_ratios=(1, 1.3, 1.3))
        first, *rest = axes.flat
        first.barh(places, frame["identical"], height=0.55, color="#9ECAE1", edgecolor=COLOURS[2])
        first.set_xlim(0, 1.02)
        first.set_xlabel("share of\nidentical outputs")
        for axis, (_, name) in zip(rest, ORDERS, strict=True):
            for at, low, high in zip(places, frame[f"tv_{name}_chance"], frame[f"tv_{name}_chance_upper"], strict=True):
                axis.plot([0, high], [at, at], color="#CCCCCC", linewidth=6, solid_capstyle="butt")
                axis.plot(low, at, color="#777777", marker="|", markersize=8)
            axis.plot(frame[f"tv_{name}"], places, color=COLOURS[1], marker="D", linestyle="", label="found")
            axis.set_xlim(left=-0.02 * (axis.get_xlim()[1] or 1))
            axis.set_xlabel(f"total variation\nof {name}")
        rest[0].plot([], [], color="#CCCCCC", linewidth=6, label="by chance (95 %, mean)")
        first.set_yticks([at for at, _, _ in ticks], [label for _, label, _ in ticks])
        for tick, (_, _, head) in zip(first.get_yticklabels(), ticks, strict=True):
            tick.set_fontweight("bold" if head else "normal")
        for axis in axes.flat:
            axis.set_ylim(y - 0.2, -0.8)
            axis.grid(axis="y", visible=False)
            axis.tick_params(axis="y", length=0)
        legend_below(figure, *legend_of(axes))
    return Drawing(
        family.table_name("output_distances"), "Distance of the output from the baseline's", figure, frame, WORDS
        + "Grey: distances up to the 95 % quantile of random exchanges, stroke at their mean; texts that are equal have none. "
        + _setting(frames, family),
    )  # fmt: skip
