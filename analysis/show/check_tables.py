"""Tables about what a speed-up rests on: the lossless verdict, the noise floor, and what a token cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from specbench.analysis.derive.conditions import Group
from specbench.analysis.derive.derive import Comparison, Estimate
from specbench.analysis.read.frames import Frames
from specbench.analysis.show.captions import definitions, setting
from specbench.analysis.show.cells import Column, row_of
from specbench.analysis.show.members import RUN, Member, in_parts, members, ranked_rows
from specbench.analysis.show.table import Table


def lossless_table(group: Group, comparisons: Sequence[Comparison]) -> Table:
    """The verdict in full: claim, how many outputs agree, where the first one parts."""

    def count(name: str) -> Column:
        return Column(name, name, "outputs", digits=0, of=lambda m: m.verdict.get(name) if m.verdict.get("compared") else None)

    def first(m: Member) -> dict[str, Any]:
        return m.verdict.get("first_divergence") or {}

    def place(m: Member) -> str | None:
        return f"{first(m)['sample_id']} at token {first(m)['position']}" if first(m) else None

    columns = [
        *RUN,
        Column("claim", "claim", text=True, of=lambda m: m.verdict.get("claim")),
        Column("verdict", "verdict", text=True, of=lambda m: str(m.verdict.get("verdict")).replace("_", " ")),
        count("identical"),
        count("compared"),
        Column("first", "first divergence", text=True, of=place),
        Column("gap", "gap", digits=5, of=lambda m: first(m).get("gap")),
        Column("why", "reason", text=True, of=lambda m: first(m).get("reason") or m.verdict.get("verdict_why")),
    ]
    rows = [row_of(columns, m, ranked=False) for m in members(*comparisons)]
    caption = (
        "Ids of both arms compared by sample, turn and repeat. Gap: distance of the two best scores where the outputs first "
        "part; below the tolerance of the number format the parting is a numerical tie. "
        f"{setting(group.conditions, comparisons)}"
    )
    return Table("lossless", "Was the output the target's?", columns, rows, caption).drop_empty_columns()


def noise_floor_table(group: Group) -> Table:
    """The baseline against itself: what this machine reports where there is nothing to find."""

    def ratio(kind: str) -> Callable[[Any], Estimate]:
        return lambda facts: Estimate(facts["speedup"], facts[f"{kind}_low"], facts[f"{kind}_high"])

    columns = [
        *(Column(name, name, text=True) for name in ("pair", "data")),
        Column("n", "n", digits=0, of=lambda facts: facts["num_prompts"]),
        Column("speedup", "ratio, interval over prompts", digits=3, of=ratio("speedup")),
        Column("repeats", "ratio, interval over repeats", digits=3, of=ratio("speedup_repeats")),
    ]
    rows = [row_of(columns, facts, ranked=False) for _, facts in group.noise_floors.iterrows()]
    machine = "; ".join(dict.fromkeys(group.noise_floors["machine"]))
    caption = (
        f"The baseline ({group.conditions.get('baseline')}) measured against itself, hardware: {machine}. A speed-up inside "
        "these intervals is not told from noise."
    )
    return Table("noise_floor", "Noise floor", columns, rows, caption)


def energy_table(group: Group, comparisons: Sequence[Comparison]) -> Table:
    """Joules per token of both arms where they were measured, gross first, and how they part."""

    def joules(name: str, label: str) -> Column:
        return Column(name, label, "J/token", digits=3, of=lambda m: m.energy.get(name))

    def saving(m: Member) -> float | None:
        baseline = m.energy.get("baseline_joules_per_token")
        return 100 * (1 - m.energy["joules_per_token"] / baseline) if baseline else None

    def share(m: Member, part: str) -> float | None:
        spent, tokens = (m.energy.get("joules_by_part") or {}).get(part), m.energy.get("num_output_tokens")
        return spent / tokens if tokens and spent is not None else None

    def part(name: str) -> Column:
        return Column(name, name.replace("_", " "), "of which", digits=3, of=lambda m: share(m, name))

    columns = [
        *RUN,
        replace(joules("joules_per_token", "gross"), best="smallest"),
        joules("net_joules_per_token", "net of idle"),
        joules("baseline_joules_per_token", "baseline, gross"),
        Column("saving_percent", "saving %", "J/token", digits=1, of=saving),
        *map(part, ("verify", "draft", "discarded_draft", "prefill", "wait")),
        Column("source", "source", text=True, of=lambda m: str(m.energy.get("source"))),
    ]
    measured = [[m for m in members(c) if m.energy.get("joules_per_token") is not None] for c in comparisons]
    rows = in_parts([row for runs in measured for row in ranked_rows(columns, runs)])
    caption = (
        "Energy per output token from a pass of its own; every device of the method is charged, whether it works or waits. "
        f"{setting(group.conditions, comparisons)} {definitions('bold')}"
    )
    rules = {str(m.energy.get("attribution_rule") or "") for m in members(*comparisons)} - {""}
    return Table("energy", "Energy", columns, rows, caption, sorted(rules)).drop_empty_columns()


def why_no_energy(frames: Frames) -> str:
    """Why runs have no joules, in a sentence: the reasons that they recorded, each once; empty where all have some."""
    why = [
        str((summary.get("energy") or {}).get("joules_per_token_why") or "energy was not recorded")
        for run, summary in frames.summaries.items()
        if frames.runs.at[run, "mode"] == "paired" and (summary.get("energy") or {}).get("joules_per_token") is None
    ]
    named = [reason for reason in dict.fromkeys(why) if reason != "measure.power=off"] or list(dict.fromkeys(why))
    return f"Reason recorded by the runs: {'; '.join(named)}." if named else ""
