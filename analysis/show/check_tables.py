"""Tables about what a speed-up rests on: the lossless verdict, the noise floor, and what a token cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from specbench.analysis.derive.conditions import Group
from specbench.analysis.derive.derive import Comparison, Estimate, is_ranked
from specbench.analysis.read.frames import Frames
from specbench.analysis.show.captions import definitions, setting
from specbench.analysis.show.members import DATA, METHOD, PAIR, in_parts, part_of
from specbench.analysis.show.table import Column, Table, mark_columns, row_of


def lossless_table(frames: Frames, group: Group, comparisons: Sequence[Comparison]) -> Table:
    """The verdict in full: claim, how many outputs agree, where the first one parts."""

    def count(name: str) -> Column:
        return Column(
            name, name, "outputs", digits=0, of=lambda it: it.verdict.get(name) if it.verdict.get("compared") else None
        )

    def place(first: dict[str, Any]) -> str | None:
        return f"{first['sample_id']} at token {first['position']}" if first else None

    columns = [
        PAIR,
        DATA,
        METHOD,
        Column("claim", "claim", text=True, of=lambda item: item.verdict.get("claim")),
        Column("verdict", "verdict", text=True, of=lambda item: str(item.verdict.get("verdict")).replace("_", " ")),
        count("identical"),
        count("compared"),
        Column("first", "first divergence", text=True, of=lambda item: place(item.first)),
        Column("gap", "gap", digits=5, of=lambda item: item.first.get("gap")),
        Column("why", "reason", text=True, of=lambda item: item.first.get("reason") or item.verdict.get("verdict_why")),
    ]
    rows = []
    for run, facts in group.runs.iterrows():
        verdict = frames.summaries[run].get("lossless") or {}
        first, compared = verdict.get("first_divergence") or {}, verdict.get("compared")
        item = SimpleNamespace(facts=facts, verdict=verdict, first=first, compared=compared)
        rows.append(row_of(columns, item, ranked=False))
    return Table(
        "lossless",
        "Was the output the target's?",
        columns,
        rows,
        "Ids of both arms compared by sample, turn and repeat. Gap: distance of the two best scores where the outputs first "
        "part; below the tolerance of the number format the parting is a numerical tie. "
        + setting(group.conditions, comparisons),
    ).drop_empty_columns()  # fmt: skip


def noise_floor_table(group: Group) -> Table:
    """The baseline against itself: what this machine reports where there is nothing to find."""

    def ratio(kind: str) -> Callable[[Any], Estimate]:
        return lambda facts: Estimate(facts["speedup"], facts[f"{kind}_low"], facts[f"{kind}_high"])

    columns = [
        Column("pair", "pair", text=True, of=lambda facts: str(facts["pair"])),
        Column("data", "data", text=True, of=lambda facts: str(facts["data"])),
        Column("n", "n", digits=0, of=lambda facts: facts["num_prompts"]),
        Column("speedup", "ratio, interval over prompts", digits=3, of=ratio("speedup")),
        Column("repeats", "ratio, interval over repeats", digits=3, of=ratio("speedup_repeats")),
    ]
    rows = [row_of(columns, facts, ranked=False) for _, facts in group.noise_floors.iterrows()]
    machine = "; ".join(dict.fromkeys(group.noise_floors["machine"]))
    caption = f"The baseline ({group.conditions.get('baseline')}) measured against itself, hardware: {machine}. "
    return Table(
        "noise_floor", "Noise floor", columns, rows, caption + "A speed-up inside these intervals is not told from noise."
    )


def energy_table(frames: Frames, group: Group, comparisons: Sequence[Comparison]) -> Table:
    """Joules per token of both arms where they were measured, gross first, and how they part."""

    def joules(name: str, label: str) -> Column:
        return Column(name, label, "J/token", digits=3, of=lambda item: item.energy.get(name))

    def saving(energy: dict[str, Any]) -> float | None:
        baseline = energy.get("baseline_joules_per_token")
        return 100 * (1 - energy["joules_per_token"] / baseline) if baseline else None

    def part(name: str) -> Column:
        return Column(name, name.replace("_", " "), "of which", digits=3, of=lambda item: share(item.energy, name))

    def share(energy: dict[str, Any], name: str) -> float | None:
        spent, tokens = (energy.get("joules_by_part") or {}).get(name), energy.get("num_output_tokens")
        return spent / tokens if tokens and spent is not None else None

    columns = [
        PAIR,
        DATA,
        METHOD,
        replace(joules("joules_per_token", "gross"), best="smallest"),
        joules("net_joules_per_token", "net of idle"),
        joules("baseline_joules_per_token", "baseline, gross"),
        Column("saving_percent", "saving %", "J/token", digits=1, of=lambda item: saving(item.energy)),
        *map(part, ("verify", "draft", "discarded_draft", "prefill", "wait")),
        Column("source", "source", text=True, of=lambda item: str(item.energy.get("source"))),
    ]
    rows = {}
    for run, facts in group.runs.iterrows():
        energy = frames.summaries[run].get("energy") or {}
        if energy.get("joules_per_token") is not None:
            item = SimpleNamespace(facts=facts, energy=energy)
            rows[run] = row_of(columns, item, part_of(facts), is_ranked(facts))
    for _, runs in group.runs.groupby(["pair_label", "data_label"], sort=False):
        mark_columns(columns, [rows[run] for run in runs.index if run in rows])
    rules = {frames.summaries[run].get("energy", {}).get("attribution_rule") for run in group.runs.index} - {None}
    return Table(
        "energy",
        "Energy",
        columns,
        in_parts(list(rows.values())),
        "Energy per output token from a pass of its own; every device of the method is charged, whether it works or waits. "
        + setting(group.conditions, comparisons) + " " + definitions("bold"),
        sorted(str(rule) for rule in rules),
    ).drop_empty_columns()  # fmt: skip


def why_no_energy(frames: Frames) -> str:
    """Why runs have no joules, in a sentence: the reasons that they recorded, each once; empty where all have some."""
    why = [
        str((summary.get("energy") or {}).get("joules_per_token_why") or "energy was not recorded")
        for run, summary in frames.summaries.items()
        if frames.runs.at[run, "mode"] == "paired" and (summary.get("energy") or {}).get("joules_per_token") is None
    ]
    named = [reason for reason in dict.fromkeys(why) if reason != "measure.power=off"] or list(dict.fromkeys(why))
    return f"Reason recorded by the runs: {'; '.join(named)}." if named else ""
