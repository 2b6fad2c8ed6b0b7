"""One draft under every stop policy: which gains how much over the best fixed length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from specbench.analysis.derive.conditions import Group
from specbench.analysis.derive.derive import Estimate, ratio_of_speedups
from specbench.analysis.derive.ranking import is_ranked
from specbench.analysis.read.frames import Frames
from specbench.analysis.read.shape import entry
from specbench.analysis.reports import study
from specbench.analysis.reports.study import Chapter, Study
from specbench.analysis.reports.words import Words
from specbench.analysis.show.document import Document
from specbench.analysis.show.table import Cell, Table

WORDS = Words(__name__)
FIXED = "fixed"


@dataclass(frozen=True)
class Policy(study.Case):
    """One stop on one data set. length: the most it may draft. beside: its speed-up over that of the best fixed length."""

    gain: Estimate
    policy: str
    length: int
    beside: Estimate | None = None
    against: str = "no fixed length"

    @property
    def name(self) -> str:
        return f"{self.policy}, {self.length}"

    @property
    def emitted_per_round(self) -> float | None:
        return self.per_round("emitted_per_round")

    @property
    def drafted_per_round(self) -> float | None:
        accepted, rate = self.per_round("accepted_per_round"), self.per_round("acceptance_rate")
        return accepted / rate if accepted is not None and rate else None


def policy_of(stop: Any) -> str:
    """`method.stop` in a word or two: its name, or its node's module and what it sets."""
    if not isinstance(stop, dict):
        return str(stop or FIXED)
    name = str(stop.get("_target_", "")).split(".")[-2:][0]
    said = [f"{key} {value}" for key, value in stop.items() if key not in ("_target_", "draft_length") and value is not None]
    return f"{name} ({', '.join(said)})" if said else name


def cases_of(frames: Frames, groups: Sequence[Group]) -> list[Policy]:
    """Runs that take a stop and have a speed-up, by data set: fixed lengths first, then policies by name."""
    found = []
    for case in study.cases_in(frames, groups):
        method, gain = entry(case.run_facts, "config.method") or {}, case.speedup
        if gain is not None and "stop" in method and isinstance(method.get("draft_length"), int):
            found.append(Policy.of(case, gain, policy_of(method["stop"]), method["draft_length"]))
    judged = [policy for data in study.data_of(found) for policy in beside_best([p for p in found if p.data == data])]
    return study.by_data(judged, lambda p: (p.policy != FIXED, p.policy, p.length))


def best_fixed(policies: Sequence[Policy]) -> Policy | None:
    fixed = [policy for policy in policies if policy.policy == FIXED and is_ranked(policy.facts)]
    return max(fixed, key=lambda policy: policy.gain.value, default=None)


def beside_best(policies: Sequence[Policy]) -> list[Policy]:
    """The policies of a data set beside its best fixed length. Told apart where the 95 % interval of the ratio of both
    speed-ups, each over its own run's baseline and paired by prompt, excludes 1. The best of several noisy lengths is too good:
    a policy that equals it has not lost to it.
    """
    best = best_fixed(policies)
    if best is None:
        return list(policies)
    made = []
    for policy in policies:
        ratio = None if policy is best else ratio_of_speedups(policy.pairs, best.pairs)
        made.append(replace(policy, beside=ratio, against="best fixed" if policy is best else _told(ratio)))
    return made


def _told(ratio: Estimate | None) -> str:
    if ratio is None or ratio.interval is None:
        return "no interval"
    low, high = ratio.interval
    return "more" if low > 1 else "less" if high < 1 else "not told apart"


def say(doc: Document, chapter: Chapter[Policy]) -> None:
    for data in study.data_of(chapter.cases):
        own = [policy for policy in chapter.cases if policy.data == data]
        best, others = best_fixed(own), [policy for policy in own if policy.policy != FIXED]
        if best is not None and others:
            gain = Cell.of(best.gain.value, best.gain.low, best.gain.high).text()
            names = {said: [p.policy for p in others if p.against == said] for said in ("more", "less", "not told apart")}
            doc.text(WORDS.say("best", data=data, length=best.length, gain=gain, names=names))


def table_of(chapter: Chapter[Policy]) -> Table:
    setting = study.setting_of(chapter.cases)
    return WORDS.table(chapter, "stop", study.notes_of(chapter.cases), setting=setting)


STUDY = Study(**WORDS.study, chapters=study.by_family(cases_of), say=say, table=table_of)
