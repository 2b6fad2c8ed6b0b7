"""AMUSD's open question 3: what the joules of a token go to, asynchronous against sequential drafting.

The rule that parts the joules is `measure.attribution`'s. Where nothing could be measured every joule is missing with its
reason, and the seconds that the rule would part them by stand beside it, from the timed passes: a split of time, no energy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from specbench.analysis.derive.conditions import Group
from specbench.analysis.derive.families import BASELINE
from specbench.analysis.read.frames import Frames
from specbench.analysis.reports import study
from specbench.analysis.reports.study import Chapter
from specbench.analysis.reports.words import Words
from specbench.analysis.show import check_tables
from specbench.analysis.show.cells import Cell
from specbench.analysis.show.document import Document
from specbench.analysis.show.style import Drawing, Ladder, filled, legend_below, new_figure, styled
from specbench.analysis.show.table import Table
from specbench.measure.attribution import PARTS, parts_of_work
from specbench.measure.records.events import PARTS as TIME_PARTS

WORDS = Words(__name__)
LABELS = WORDS["labels"]
FILLS = {"verify": 2, "draft": 4, "discarded_draft": 5, "prefill": 3, "wait": 6}
ROLES = ("target", "draft")
ORDER = {"autoregressive": 0, "speculative": 1}  # and then the others
assert set(LABELS) == set(PARTS)


@dataclass(frozen=True)
class Arm(study.Case):
    """One arm of a run. joules and seconds are per output token, by part; the seconds are a device's, by role."""

    arm: str

    @property
    def label(self) -> str:
        return str(self.facts["label"] if self.arm == "method" else self.condition("baseline"))

    def entry(self, name: str) -> Any:
        """An entry of the run's energy summary for this arm; None without it."""
        return self.energy.get(name if self.arm == "method" or name == "source" else f"baseline_{name}")

    @property
    def source(self) -> str:
        return str(self.entry("source") or "none")

    @property
    def net_joules_per_token(self) -> float | None:
        return self.entry("net_joules_per_token")

    @property
    def per_token(self) -> Cell:
        blocks = self.entry("joules_per_token_by_block") or [None]
        return Cell.of(self.entry("joules_per_token"), min(blocks), max(blocks), 3)

    @property
    def why(self) -> str | None:
        """Why joules, or their parts, are missing; None where they are not."""
        if self.entry("joules_by_part"):
            return None
        if self.per_token.number is not None:
            return self.entry("joules_by_part_why")
        return self.entry("joules_per_token_why") or "energy was not recorded"

    @cached_property
    def joules(self) -> dict[str, float]:
        tokens, parts = self.entry("num_output_tokens"), self.entry("joules_by_part") or {}
        return {part: joules / tokens for part, joules in parts.items()} if tokens else {}

    @cached_property
    def seconds(self) -> dict[str, float]:
        """Device seconds per output token by role and part (`target verify`, `draft discarded_draft` ...), timed passes alone.

        The attribution rule's own split (`parts_of_work`): what it would part the joules by. A role's `wait` is what remains
        of prefill and decode time; a draft without a process of its own has no device of its own and no wait.
        """
        where = (self.run, self.arm, self.comparison.only)
        own, table = self.comparison.frames.finished(*where), self.comparison.frames.table(*where)
        tokens = float(own["num_output_tokens"].sum())
        if not tokens:
            return {}
        spent = {name: float(table.columns[f"{name}_seconds"].sum()) for name in TIME_PARTS}
        names = ("draft", "discarded_draft", "idle")
        worker = {name: float(own[f"concurrent_{name}"].sum()) for name in names if own[f"concurrent_{name}"].notna().any()}
        drafted = int(table.num_drafted.sum())
        share = int((table.num_drafted - table.num_accepted).sum()) / drafted if drafted else 0.0
        active = parts_of_work(spent, worker, float(own["prefill_seconds"].sum()), share)
        whole = float(own["decode_seconds"].sum() + own["prefill_seconds"].sum())
        roles = {"target": active["target"] | ({} if worker else active["draft"])}
        if worker:
            roles["draft"] = active["draft"]
        out: dict[str, float] = {}
        for role, parts in roles.items():
            out |= {f"{role} {part}": seconds / tokens for part, seconds in parts.items() if seconds}
            out[f"{role} wait"] = max(0.0, whole - sum(parts.values())) / tokens
        return out

    @property
    def milliseconds(self) -> dict[str, float]:
        return {part: 1e3 * seconds for part, seconds in self.seconds.items()}

    def of_all_devices(self, part: str) -> float:
        return sum(self.seconds.get(f"{role} {part}", 0.0) for role in ROLES)


def cases_of(frames: Frames, groups: Sequence[Group]) -> list[Arm]:
    """Both arms of every paired run, each arm of a data set once: a run that has both AMUSD and speculative comes first."""
    ordered = sorted(groups, key=lambda g: g.conditions.get("baseline") == "autoregressive")
    made: dict[tuple[str, str, str], Arm] = {}
    for case in study.cases_in(frames, ordered):
        for arm in ("method", "baseline") if len(case.pairs) else ():
            own = Arm.of(case, arm)
            made.setdefault((case.comparison.pair, case.data, own.label), own)
    return study.by_data(made.values(), lambda arm: ORDER.get(arm.label, len(ORDER)))


def say(doc: Document, chapter: Chapter[Arm]) -> None:
    if all(arm.per_token.number is None for arm in chapter.cases):
        doc.warning(WORDS.say("no_energy", why=check_tables.why_no_energy(chapter.frames)))


def _setting(chapter: Chapter[Arm]) -> str:
    baselines = sorted({str(arm.condition("baseline")) for arm in chapter.cases})
    return study.setting_of(chapter.cases, baseline=", ".join(baselines))


# ---------------------------------------------------------------------------------------------------- tables
def joules_table(chapter: Chapter[Arm]) -> Table:
    """Missing joules stay in the table, each row with its reason."""

    def saving(arm: Arm) -> float | None:
        """Per cent of speculative decoding's joules on the same data set."""
        other = next((o for o in chapter.cases if o.data == arm.data and o.label == "speculative"), arm)
        ours, theirs = arm.per_token.number, other.per_token.number
        return None if other is arm or ours is None or not theirs else 100 * (1 - ours / theirs)

    rules = [str((summary.get("energy") or {}).get("attribution_rule") or "") for summary in chapter.frames.summaries.values()]
    notes, setting = [rule for rule in dict.fromkeys(rules) if rule], _setting(chapter)
    table = WORDS.table(chapter, "amusd_energy", notes, of={"saving_percent": saving}, keep_empty=True, setting=setting)
    if not any(arm.why for arm in chapter.cases):
        table.columns.pop()
    return table


def seconds_table(chapter: Chapter[Arm]) -> Table:
    """The split of time that the rule parts the joules by."""
    return WORDS.table(chapter, "amusd_energy_time", setting=_setting(chapter))


# ---------------------------------------------------------------------------------------------------- figure
def figure_of(chapter: Chapter[Arm]) -> Drawing:
    """Stacked bars by part: joules per token where there are any, the devices' time per token where there are none."""
    measured = any(arm.joules for arm in chapter.cases)
    ladder, places, rows = Ladder(gap=0.2), [], []
    for data in study.data_of(chapter.cases):
        ladder.head(data)
        for arm in (arm for arm in chapter.cases if arm.data == data):
            places.append(ladder.row(arm.label))
            spent = {p: arm.joules.get(p, 0.0) if measured else 1e3 * arm.of_all_devices(p) for p in LABELS}
            rows.append({"data": data, "method": arm.label, **spent})
    frame = pd.DataFrame(rows)
    with styled():
        figure, axes = new_figure(height=1.2 + 0.27 * (ladder.bottom + ladder.gap))
        axis = axes[0, 0]
        left = pd.Series(0.0, frame.index)
        for part in LABELS:
            axis.barh(places, frame[part], height=0.72, left=left, label=LABELS[part], **filled(FILLS[part]))
            left += frame[part]
        ladder.label(axis, margin=0.0)
        axis.set_xlabel("joules per output token (gross)" if measured else "device time per output token, ms (no energy)")
        legend_below(figure)
    name = "energy_by_part" if measured else "device_time_by_part"
    return WORDS.drawing(name, figure, frame, setting=_setting(chapter))


STUDY = study.Study(
    **WORDS.study,
    chapters=study.by_family(cases_of, BASELINE),
    say=say,
    table=joules_table,
    shown=(figure_of, seconds_table),
)
