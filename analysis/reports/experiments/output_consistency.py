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
from specbench.analysis.reports.words import Words
from specbench.analysis.show.captions import setting
from specbench.analysis.show.document import Document
from specbench.analysis.show.style import COLOURS, Drawing, Ladder, legend_below, new_figure, styled
from specbench.analysis.show.table import Table

VARIED = ("decoding.temperature", "decoding.seed")
ORDERS = {"tokens": 1, "bigrams": 2}
NOISE = 0.05  # p-values below say that the two texts hardly come from one law
WORDS = Words(__name__)


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
    def distances(self) -> dict[str, Distance | None]:
        return {name: outputs.distance(self.pairs, n) for name, n in ORDERS.items()}

    @property
    def js(self) -> float | None:
        found = outputs.distance(self.pairs, 2, outputs.jensen_shannon)
        return None if found is None else found.value

    @property
    def distinct(self) -> dict[str, float | None]:
        """Distinct-n of the own text and of the other one, by side and n."""
        sides = {"own": 0, "other": 1}
        return {
            f"{name}_{n}": outputs.distinct([pair[side] for pair in self.pairs], n)
            for name, side in sides.items()
            for n in ORDERS.values()
        }

    @property
    def claimed(self) -> str:
        return f"same {self.wanted}" if self.wanted else "nothing"

    @property
    def identical(self) -> str:
        return self.agreement.text()

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
    for wanted in ("ids", "law"):
        kept = [case.is_kept for case in chapter.cases if case.wanted == wanted and case.is_kept is not None]
        if kept:
            doc.text(WORDS.say(wanted, kept=sum(kept), compared=len(kept)))
    for case in chapter.cases:
        if case.is_kept is False:
            doc.warning(WORDS.say(f"not_{case.wanted}", case=case, noise=NOISE))


def table_of(chapter: Chapter[Texts]) -> Table:
    other = sum(case.agreement.other_prompt for case in chapter.cases)
    notes = [WORDS.say("other_prompts", number=other)] if other else []
    return WORDS.table(chapter, "output_consistency", notes, setting=_setting(chapter))


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
                f"tv_{name}{key}": getattr(case.distances[name], part, np.nan)
                for name in ORDERS
                for key, part in (("", "value"), ("_chance", "expected"), ("_chance_upper", "upper"))
            }
        )
    frame = pd.DataFrame(rows)
    with styled():
        figure, axes = new_figure(1, 3, height=1.0 + 0.22 * ladder.bottom, sharey=True, width_ratios=(1, 1.3, 1.3))
        first, *rest = axes.flat
        first.barh(places, frame["identical"], height=0.55, color="#9ECAE1", edgecolor=COLOURS[2])
        first.set(xlim=(0, 1.02), xlabel="share of\nidentical outputs")
        for axis, name in zip(rest, ORDERS, strict=True):
            for at, low, high in zip(places, frame[f"tv_{name}_chance"], frame[f"tv_{name}_chance_upper"], strict=True):
                axis.plot([0, high], [at, at], color="#CCCCCC", linewidth=6, solid_capstyle="butt")
                axis.plot(low, at, color="#777777", marker="|", markersize=8)
            axis.plot(frame[f"tv_{name}"], places, color=COLOURS[1], marker="D", linestyle="", label="found")
            axis.set_xlim(left=-0.02 * (axis.get_xlim()[1] or 1))
            axis.set_xlabel(f"total variation\nof {name}")
        rest[0].plot([], [], color="#CCCCCC", linewidth=6, label="by chance (95 %, mean)")
        ladder.label(axes)
        legend_below(figure)
    return WORDS.drawing("output_distances", figure, frame, setting=_setting(chapter))


STUDY = study.Study(
    **WORDS.study,
    chapters=study.by_family(cases_of, VARIED),
    say=say,
    table=table_of,
    shown=(figure_of,),
)
