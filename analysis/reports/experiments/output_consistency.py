"""Whether the text changes with the method: identity, first divergence and n-gram statistics, greedy and sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from specbench.analysis.derive import outputs
from specbench.analysis.derive.conditions import Group
from specbench.analysis.derive.derive import comparisons
from specbench.analysis.derive.outputs import Agreement, Distance, Key, Output, read_outputs
from specbench.analysis.read.frames import Frames
from specbench.analysis.reports import study
from specbench.analysis.reports.study import Chapter
from specbench.analysis.show.captions import setting
from specbench.analysis.show.document import Document
from specbench.analysis.show.style import COLOURS, Drawing, Ladder, legend_below, new_figure, styled
from specbench.analysis.show.table import Column, Table

VARIED = ("decoding.temperature", "decoding.seed")
ORDERS = ((1, "tokens"), (2, "bigrams"))
NOISE = 0.05  # p-values below say that the two texts hardly come from one law
WANTED = {"ids": "same ids", "law": "same law", None: "nothing"}
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
class Texts:
    """One comparison of two texts. wanted: same ids, same law, or None where nothing is claimed (other random numbers)."""

    data: str
    law: str
    label: str
    wanted: str | None
    ours: dict[Key, Output]
    theirs: dict[Key, Output]

    @cached_property
    def agreement(self) -> Agreement:
        return outputs.agree((self.ours[key], self.theirs[key]) for key in sorted(self.ours.keys() & self.theirs.keys()))

    @cached_property
    def pairs(self) -> list[tuple[Sequence[int], Sequence[int]]]:
        """The ids of the first repeat that both have of a prompt."""
        return [(a.ids, b.ids) for a, b in outputs.same_prompts(self.ours, self.theirs)]

    @cached_property
    def distances(self) -> dict[int, Distance | None]:
        return {n: outputs.distance(self.pairs, n) for n, _ in ORDERS}

    @property
    def js(self) -> float | None:
        found = outputs.distance(self.pairs, 2, outputs.jensen_shannon)
        return None if found is None else found.value

    def distinct(self, side: int, n: int) -> float | None:
        return outputs.distinct([pair[side] for pair in self.pairs], n)

    @property
    def is_kept(self) -> bool | None:
        """Whether what is wanted was found; None where nothing is wanted or nothing could be compared."""
        if self.wanted is None or not self.agreement.compared:
            return None
        if self.wanted == "ids":
            return self.agreement.identical == self.agreement.compared
        return all(d is None or d.p_value >= NOISE / len(ORDERS) for d in self.distances.values())


def cases_of(frames: Frames, groups: Sequence[Group]) -> list[Texts]:
    """Every method against its own baseline; then the baseline under one seed against that under another."""
    cases: list[Texts] = []
    baselines: dict[tuple[str, str, float], dict[int, tuple[str, dict[Key, Output]]]] = {}
    for case in study.cases_in(frames, sorted(groups, key=_law_of)):
        temperature, seed = _law_of(case.group)
        folder, name = str(case.facts["folder"]), str(case.condition("baseline"))
        alone = frames.own_arm(case.run) == "baseline" or not read_outputs(folder, "baseline")
        theirs = read_outputs(folder, frames.own_arm(case.run) if alone else "baseline")
        if not alone or case.facts["method"] == name:
            baselines.setdefault((case.data, case.comparison.pair, temperature), {}).setdefault(seed, (name, theirs))
        if not alone:
            facts = case.facts
            wanted = None if facts["claim"] == "lossy" else "law" if facts["verdict"] == "not_compared" else "ids"
            label = str(facts["label"]).replace(" (rule=off)", "") + (f", seed {seed}" if seed and temperature else "")
            cases.append(Texts(case.data, _law(temperature), label, wanted, read_outputs(folder, "method"), theirs))
    if not any(case.wanted for case in cases):
        return []
    for (data, _, temperature), by_seed in baselines.items():
        first, *others = sorted(by_seed)
        for other in others if temperature else ():  # greedy decoding draws nothing
            label = f"{by_seed[other][0]}, seed {other} against seed {first}"
            cases.append(Texts(data, _law(temperature), label, None, by_seed[other][1], by_seed[first][1]))
    return study.by_data(cases, lambda case: (case.law != "greedy", case.law))


def _law_of(group: Group) -> tuple[float, int]:
    return float(group.conditions.get("decoding.temperature") or 0.0), int(group.conditions.get("decoding.seed") or 0)


def _law(temperature: float) -> str:
    return f"T={temperature:g}" if temperature else "greedy"


def say(doc: Document, chapter: Chapter[Texts]) -> None:
    """What was wanted and found, in a sentence each, and aloud where it was not."""
    for wanted, text in (
        ("ids", "comparisons of methods that claim the baseline's own ids found every output identical"),
        ("law", "comparisons of methods that claim the baseline's law found distances that chance makes too"),
    ):
        kept = [case.is_kept for case in chapter.cases if case.wanted == wanted and case.is_kept is not None]
        if kept:
            doc.text(f"{sum(kept)} of {len(kept)} {text}.")
    for case in chapter.cases:
        if case.is_kept is False:
            found = case.agreement
            why = (
                f"{found.compared - found.identical} of {found.compared} outputs differ from the "
                "baseline's (the run's lossless verdict tells numerical ties from faults)"
                if case.wanted == "ids"
                else f"its n-gram frequencies lie further from the baseline's than chance makes likely (p < {NOISE})"
            )
            doc.warning(f"{case.label}, {case.law}, {case.data}: {why}.")


def _distance(n: int, name: str, key: str, label: str, part: str) -> Column:
    return Column(f"tv_{name}{key}", label, f"TV of {name}", digits=3, of=lambda c: getattr(c.distances[n], part, None))


def _distinct(n: int, key: str, label: str, side: int) -> Column:
    return Column(f"distinct_{n}{key}", label, f"distinct-{n}", of=lambda c: c.distinct(side, n))


COLUMNS = (
    study.DATA,
    Column("law", "decoding", merge=True, text=True, of=lambda c: c.law),
    Column("label", "text", text=True, of=lambda c: c.label),
    Column("wanted", "claimed", text=True, of=lambda c: WANTED[c.wanted]),
    Column("identical", "identical", of=lambda c: c.agreement.text()),
    Column("first_divergence", "first divergence", digits=0, of=lambda c: c.agreement.median_position),
    *(
        _distance(n, name, *part)
        for n, name in ORDERS
        for part in (("", "found", "value"), ("_chance", "by chance", "expected"), ("_p", "p", "p_value"))
    ),
    Column("js_bigrams", "JS of bigrams", digits=3, of=lambda c: c.js),
    *(_distinct(n, *side) for n, _ in ORDERS for side in (("", "own", 0), ("_other", "other", 1))),
)


def table_of(chapter: Chapter[Texts]) -> Table:
    other = sum(case.agreement.other_prompt for case in chapter.cases)
    notes = [f"{other} pairs of outputs were not compared: their prompts differ, because the conversation before did"]
    return chapter.table(
        "output_consistency", "Output against autoregressive decoding", COLUMNS,
        f"{WORDS}Rows that claim nothing set the baseline beside itself under another seed: as far as two samples of the law "
        f"itself lie apart. {_setting(chapter)}",
        notes if other else [],
    )  # fmt: skip


def _setting(chapter: Chapter[Texts]) -> str:
    """n and hardware; the laws are in the rows."""
    group = chapter.groups[0]
    return setting(group.conditions, comparisons(chapter.frames, group)).replace(f"; {_law(_law_of(group)[0])}, ", "; ")


def figure_of(chapter: Chapter[Texts]) -> Drawing:
    """Each comparison's distance beside what chance makes of it, and its share of identical outputs."""
    ladder, places, rows, above = Ladder(), [], [], ""
    for case in chapter.cases:
        head = f"{case.data}, {case.law}"
        if head != above:
            ladder.head(head)
            above = head
        places.append(ladder.row(case.label))
        rows.append(
            {"data": case.data, "decoding": case.law, "text": case.label}
            | {"identical": np.nan if case.agreement.share is None else case.agreement.share}
            | {
                f"tv_{name}{key}": getattr(case.distances[n], part, np.nan)
                for n, name in ORDERS
                for key, part in (("", "value"), ("_chance", "expected"), ("_chance_upper", "upper"))
            }
        )
    frame = pd.DataFrame(rows)
    with styled():
        figure, axes = new_figure(1, 3, height=1.0 + 0.22 * ladder.bottom, sharey=True, width_ratios=(1, 1.3, 1.3))
        first, *rest = axes.flat
        first.barh(places, frame["identical"], height=0.55, color="#9ECAE1", edgecolor=COLOURS[2])
        first.set(xlim=(0, 1.02), xlabel="share of\nidentical outputs")
        for axis, (_, name) in zip(rest, ORDERS, strict=True):
            for at, low, high in zip(places, frame[f"tv_{name}_chance"], frame[f"tv_{name}_chance_upper"], strict=True):
                axis.plot([0, high], [at, at], color="#CCCCCC", linewidth=6, solid_capstyle="butt")
                axis.plot(low, at, color="#777777", marker="|", markersize=8)
            axis.plot(frame[f"tv_{name}"], places, color=COLOURS[1], marker="D", linestyle="", label="found")
            axis.set_xlim(left=-0.02 * (axis.get_xlim()[1] or 1))
            axis.set_xlabel(f"total variation\nof {name}")
        rest[0].plot([], [], color="#CCCCCC", linewidth=6, label="by chance (95 %, mean)")
        ladder.label(axes)
        legend_below(figure)
    return Drawing(
        "output_distances", "Distance of the output from the baseline's", figure, frame,
        f"{WORDS}Grey: distances up to the 95 % quantile of random exchanges, stroke at their mean; texts that are equal have "
        f"none. {_setting(chapter)}",
    )  # fmt: skip


STUDY = study.Study(
    title="Consistency of the output",
    heading="Output against autoregressive decoding",
    nothing="no run has a method beside its baseline: there are no two texts to compare",
    chapters=study.by_family(cases_of, VARIED),
    say=say,
    table=table_of,
    shown=(figure_of,),
)
