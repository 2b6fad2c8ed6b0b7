"""Tables about what a speed-up rests on: the lossless verdict, the noise floor, and what a token cost."""

from __future__ import annotations

from collections.abc import Sequence

from specbench.analysis.derive.conditions import Group
from specbench.analysis.derive.derive import Comparison, is_ranked
from specbench.analysis.read.frames import Frames
from specbench.analysis.show.captions import definitions, setting
from specbench.analysis.show.paper_tables import number, part_of, sort_parts
from specbench.analysis.show.table import Cell, Column, Row, Table, mark_best


def lossless_table(frames: Frames, group: Group, comparisons: Sequence[Comparison]) -> Table:
    """The verdict in full: claim, how many outputs agree, where the first one parts."""
    rows = []
    for run, facts in group.runs.iterrows():
        verdict = frames.summaries[run].get("lossless") or {}
        first = verdict.get("first_divergence") or {}
        cells = {
            "pair": Cell(str(facts["pair_label"])),
            "data": Cell(str(facts["data_label"])),
            "method": Cell(str(facts["label"])),
            "claim": Cell(verdict.get("claim")),
            "verdict": Cell(str(verdict.get("verdict")).replace("_", " ")),
            "identical": Cell.of(verdict.get("identical"), digits=0) if verdict.get("compared") else Cell(None),
            "compared": Cell.of(verdict.get("compared"), digits=0) if verdict.get("compared") else Cell(None),
            "first": Cell(f"{first['sample_id']} at token {first['position']}" if first else None),
            "gap": Cell.of(first.get("gap"), digits=5),
            "why": Cell(first.get("reason") or verdict.get("verdict_why")),
        }
        rows.append(Row(cells, ranked=False))
    columns = [
        Column("pair", "pair", merge=True, text=True),
        Column("data", "data", merge=True, text=True),
        Column("method", "method", text=True),
        Column("claim", "claim", text=True),
        Column("verdict", "verdict", text=True),
        Column("identical", "identical", "outputs"),
        Column("compared", "compared", "outputs"),
        Column("first", "first divergence", text=True),
        Column("gap", "gap"),
        Column("why", "reason", text=True),
    ]
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
    rows = [
        Row(
            {
                "pair": Cell(str(facts["pair"])),
                "data": Cell(str(facts["data"])),
                "n": number(facts["num_prompts"], 0),
                "speedup": Cell.of(facts["speedup"], facts["speedup_low"], facts["speedup_high"], 3),
                "repeats": Cell.of(facts["speedup"], facts["speedup_repeats_low"], facts["speedup_repeats_high"], 3),
            },
            ranked=False,
        )
        for _, facts in group.noise_floors.iterrows()
    ]
    columns = [
        Column("pair", "pair", text=True),
        Column("data", "data", text=True),
        Column("n", "n"),
        Column("speedup", "ratio, interval over prompts"),
        Column("repeats", "ratio, interval over repeats"),
    ]
    machine = "; ".join(dict.fromkeys(group.noise_floors["machine"]))
    caption = f"The baseline ({group.conditions.get('baseline')}) measured against itself, hardware: {machine}. "
    return Table(
        "noise_floor", "Noise floor", columns, rows, caption + "A speed-up inside these intervals is not told from noise."
    )


def energy_table(frames: Frames, group: Group, comparisons: Sequence[Comparison]) -> Table:
    """Joules per token of both arms where they were measured, gross first, and how they part."""
    rows = []
    for run, facts in group.runs.iterrows():
        energy = frames.summaries[run].get("energy") or {}
        if energy.get("joules_per_token") is None:
            continue
        tokens = energy.get("num_output_tokens")
        parts = energy.get("joules_by_part") or {}
        ours, theirs = energy["joules_per_token"], energy.get("baseline_joules_per_token")
        cells = {
            "pair": Cell(str(facts["pair_label"])),
            "data": Cell(str(facts["data_label"])),
            "method": Cell(str(facts["label"])),
            "joules_per_token": number(ours, 3),
            "net_joules_per_token": number(energy.get("net_joules_per_token"), 3),
            "baseline_joules_per_token": number(theirs, 3),
            "saving_percent": number(100 * (1 - ours / theirs) if theirs else None, 1),
            "source": Cell(str(energy.get("source"))),
            **{part: number(joules / tokens, 3) for part, joules in parts.items() if tokens},
        }
        rows.append(Row(cells, part_of(facts), is_ranked(facts)))
    for _, members in group.runs.groupby(["pair_label", "data_label"], sort=False):
        labels = set(members["label"])
        data = set(members["data_label"])
        mark_best(
            [r for r in rows if r.cell("method").text() in labels and r.cell("data").text() in data], "joules_per_token", False
        )
    parts = ("verify", "draft", "discarded_draft", "prefill", "wait")
    columns = [
        Column("pair", "pair", merge=True, text=True),
        Column("data", "data", merge=True, text=True),
        Column("method", "method", text=True),
        Column("joules_per_token", "gross", "J/token"),
        Column("net_joules_per_token", "net of idle", "J/token"),
        Column("baseline_joules_per_token", "baseline, gross", "J/token"),
        Column("saving_percent", "saving %", "J/token"),
        *(Column(part, part.replace("_", " "), "of which") for part in parts),
        Column("source", "source", text=True),
    ]
    rules = {frames.summaries[run].get("energy", {}).get("attribution_rule") for run in group.runs.index} - {None}
    return Table(
        "energy",
        "Energy",
        columns,
        sort_parts(rows),
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
