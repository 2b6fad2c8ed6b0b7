"""AMUSD's open question 3: what the joules of a token go to, asynchronous against sequential drafting.

The rule that parts the joules is `measure.attribution`'s. Where nothing could be measured every joule is missing with its
reason, and the seconds that the rule would part them by stand beside it, from the timed passes: a split of time, no energy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from specbench.analysis.derive.conditions import Group
from specbench.analysis.derive.derive import Comparison
from specbench.analysis.derive.families import BASELINE, Family, cells_of, families
from specbench.analysis.read.frames import Frames
from specbench.analysis.show import check_tables
from specbench.analysis.show.captions import setting
from specbench.analysis.show.document import Document
from specbench.analysis.show.paper_tables import number
from specbench.analysis.show.style import Drawing, filled, legend_below, new_figure, styled
from specbench.analysis.show.table import Cell, Column, Row, Table
from specbench.measure.attribution import PARTS, parts_of_work

TITLE = "Where the energy of a token goes"
LABELS = {
    "verify": "verifying", "draft": "drafting, kept", "discarded_draft": "drafting, thrown away", "prefill": "prefill",
    "wait": "waiting, idle",
}  # fmt: skip
FILLS = {"verify": 2, "draft": 4, "discarded_draft": 5, "prefill": 3, "wait": 6}
PREFIXES = {"method": "", "baseline": "baseline_"}
assert set(LABELS) == set(PARTS)


@dataclass
class Line:
    """One arm of one run. joules and seconds are per output token, by part; the seconds are a device's, by role."""

    comparison: Comparison
    group: Group
    data: str
    label: str
    source: str
    per_token: float | None
    net: float | None
    why: str | None
    blocks: tuple[float, float] | None
    joules: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    saving: float | None = None


def fill(doc: Document, frames: Frames) -> Table:
    """The joules by part, the seconds by part, and a figure of what there is. Raises ValueError without a paired run."""
    found = [(family, lines_of(frames, family)) for family in families(frames, BASELINE)]
    found = [(family, lines) for family, lines in found if lines]
    if not found:
        raise ValueError("no paired run: there are no two arms whose energy could be compared")
    tables = []
    for family, lines in found:
        doc.heading("Joules by part" if family.number == 1 else f"Joules by part, conditions {family.number}")
        if all(line.per_token is None for line in lines):
            doc.warning(
                f"No energy could be measured: the joules below are missing, not zero. {check_tables.why_no_energy(frames)}"
            )
        tables.append(joules_table(frames, family, lines))
        doc.add(tables[-1])
        doc.add(figure_of(family, lines))
        doc.add(seconds_table(family, lines))
    return tables[0]


def lines_of(frames: Frames, family: Family) -> list[Line]:
    """Both arms of every paired run, each arm of a data set once: a run that has both AMUSD and speculative comes first."""
    made: dict[tuple[str, str, str], Line] = {}
    ordered = sorted(family.groups, key=lambda g: g.conditions.get("baseline") == "autoregressive")
    for group in ordered:
        for comparison in cells_of(frames, group).values():
            for run, facts in comparison.runs.iterrows():
                if not len(comparison.pairs(run)):
                    continue
                for arm in ("method", "baseline"):
                    label = str(facts["label"] if arm == "method" else group.conditions.get("baseline"))
                    made.setdefault(
                        (comparison.pair, comparison.data, label), _line(frames, group, comparison, run, arm, label)
                    )
    lines = list(made.values())
    data = list(dict.fromkeys(line.data for line in lines))
    rank = {"autoregressive": 0, "speculative": 1}
    lines.sort(key=lambda line: (data.index(line.data), rank.get(line.label, 2)))
    for line in lines:
        other = next((o for o in lines if o.data == line.data and o.label == "speculative"), None)
        if other is not None and other is not line and line.per_token is not None and other.per_token:
            line.saving = 100 * (1 - line.per_token / other.per_token)
    return lines


def _line(frames: Frames, group: Group, comparison: Comparison, run: int, arm: str, label: str) -> Line:
    energy, prefix = frames.summaries[run].get("energy") or {}, PREFIXES[arm]
    per_token = energy.get(f"{prefix}joules_per_token")
    tokens = energy.get(f"{prefix}num_output_tokens")
    parts = energy.get(f"{prefix}joules_by_part") or {}
    blocks = energy.get(f"{prefix}joules_per_token_by_block")
    why = energy.get(f"{prefix}joules_per_token_why") or "energy was not recorded"
    if per_token is not None and not parts:
        why = energy.get(f"{prefix}joules_by_part_why")
    return Line(
        comparison, group, comparison.data, label, str(energy.get("source", "none")), per_token,
        energy.get(f"{prefix}net_joules_per_token"), None if parts else why,
        (min(blocks), max(blocks)) if blocks else None,
        {part: joules / tokens for part, joules in parts.items()} if tokens else {},
        seconds_by_part(frames, comparison, run, arm),
    )  # fmt: skip


def seconds_by_part(frames: Frames, comparison: Comparison, run: int, arm: str) -> dict[str, float]:
    """Device seconds per output token by role and part (`target verify`, `draft discarded_draft` ...), from the timed passes.

    The attribution rule's own split (`parts_of_work`): what it would part the joules by. A role's `wait` is what remains of
    prefill and decode time; a draft without a process of its own has no device of its own and no wait.
    """
    samples = frames.samples_of(run)
    own = samples[(samples["arm"] == arm) & samples["decode_seconds"].notna()]
    own = own[own["sample_id"].isin(comparison.prompts)] if comparison.restricted else own
    table = frames.table(run, arm, comparison.prompts if comparison.restricted else None)
    tokens = float(own["num_output_tokens"].sum())
    if not tokens:
        return {}
    spent = {name: float(table.columns[f"{name}_seconds"].sum()) for name in ("draft", "verify", "wait")}
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


# ---------------------------------------------------------------------------------------------------- tables
def joules_table(frames: Frames, family: Family, lines: Sequence[Line]) -> Table:
    rows = []
    for line in lines:
        low, high = line.blocks or (None, None)
        cells = {
            "data": Cell(line.data),
            "method": Cell(line.label),
            "joules_per_token": Cell.of(line.per_token, low, high, 3),
            "net_joules_per_token": number(line.net, 3),
            **{part: number(line.joules.get(part), 3) for part in LABELS},
            "saving_percent": number(line.saving, 1),
            "source": Cell(line.source),
            "why": Cell(line.why),
        }
        rows.append(Row(cells, ranked=False))
    columns = [
        Column("data", "data", merge=True, text=True),
        Column("method", "method", text=True),
        Column("joules_per_token", "gross", "J/token"),
        Column("net_joules_per_token", "net of idle", "J/token"),
        *(Column(part, label, "of the gross") for part, label in LABELS.items()),
        Column("saving_percent", "saving over speculative, %"),
        Column("source", "source", text=True),
        Column("why", "missing because", text=True),
    ]
    kept = [c for c in columns if c.key != "why" or any(line.why for line in lines)]
    rules = [str((summary.get("energy") or {}).get("attribution_rule") or "") for summary in frames.summaries.values()]
    return Table(
        family.table_name("amusd_energy"),
        "Joules per output token by what they were spent on",
        kept,
        rows,
        "Energy pass apart from the timed ones, blocks of whole prompts in the order method, baseline, baseline, method; every "
        "device of the method is charged, whether it works or waits. Brackets: the smallest and largest block, no interval. "
        "Savings over speculative decoding are paired where both stand in one run (AMUSD with speculative as its baseline). "
        + _setting(lines),
        [rule for rule in dict.fromkeys(rules) if rule],
    )


def seconds_table(family: Family, lines: Sequence[Line]) -> Table:
    """The split of time that the rule parts the joules by."""
    keys = [f"{role} {part}" for role in ("target", "draft") for part in LABELS]
    rows = []
    for line in lines:
        cells = {"data": Cell(line.data), "method": Cell(line.label)}
        cells |= {key: number(1e3 * line.seconds[key], 3) for key in keys if key in line.seconds}
        rows.append(Row(cells, ranked=False))
    roles = {"target": "target's device", "draft": "draft's own device"}
    columns = [Column("data", "data", merge=True, text=True), Column("method", "method", text=True)]
    columns += [
        Column(key, LABELS[part], f"{roles[role]}, ms/token")
        for key, (role, _, part) in ((key, key.partition(" ")) for key in keys)
    ]
    return Table(
        family.table_name("amusd_energy_time"),
        "The split of time that the attribution rule uses",
        columns,
        rows,
        "Seconds of each device per output token by what it did, from the timed passes: time, no energy. The rule charges a "
        "device's joules by these seconds (idle power through all of them, what is drawn above it to the parts that compute). "
        "Without a process of its own the draft works on the target's device. Bookkeeping on the host counts as waiting. "
        + _setting(lines),
    ).drop_empty_columns()


def _setting(lines: Sequence[Line]) -> str:
    first = lines[0].group
    conditions: dict[str, Any] = first.conditions | {
        "baseline": ", ".join(sorted({str(line.group.conditions.get("baseline")) for line in lines}))
    }
    return setting(conditions, list({id(line.comparison): line.comparison for line in lines}.values()))


# ---------------------------------------------------------------------------------------------------- figure
def figure_of(family: Family, lines: Sequence[Line]) -> Drawing:
    """Stacked bars by part: joules per token where there are any, the devices' time per token where there are none."""
    measured = any(line.joules for line in lines)
    rows = []
    for line in lines:
        parts = line.joules if measured else _both_devices(line.seconds)
        rows.append({"data": line.data, "method": line.label, **{part: parts.get(part, 0.0) for part in LABELS}})
    frame = pd.DataFrame(rows)
    frame[list(LABELS)] *= 1.0 if measured else 1e3
    heads = list(dict.fromkeys(frame["data"]))
    with styled():
        figure, axes = new_figure(height=1.2 + 0.27 * (len(frame) + 1.2 * len(heads)))
        axis = axes[0, 0]
        y, ticks = 0.0, list[tuple[float, str, bool]]()
        for data in heads:
            ticks.append((y, data, True))
            y += 1
            for _, row in frame[frame["data"] == data].iterrows():
                left = 0.0
                for part in LABELS:
                    axis.barh(y, row[part], height=0.72, left=left, **filled(FILLS[part]))
                    left += row[part]
                ticks.append((y, str(row["method"]), False))
                y += 1
            y += 0.2
        axis.set_yticks([at for at, _, _ in ticks], [label for _, label, _ in ticks])
        for tick, (_, _, head) in zip(axis.get_yticklabels(), ticks, strict=True):
            tick.set_fontweight("bold" if head else "normal")
        axis.set_ylim(y - 0.2, -0.7)
        axis.set_xlabel("joules per output token (gross)" if measured else "device time per output token, ms (no energy)")
        axis.grid(axis="y", visible=False)
        axis.tick_params(axis="y", length=0)
        handles = [axis.barh(0, 0, **filled(FILLS[part])) for part in LABELS]
        legend_below(figure, handles, list(LABELS.values()))
    what = (
        "Gross joules per output token by what they were spent on, every device charged."
        if measured
        else "Not energy: no joules could be measured. Device time per output token by what the device did, both devices "
        "added where the draft has one of its own: what the attribution rule would part the joules by."
    )
    name = "energy_by_part" if measured else "device_time_by_part"
    title = "Energy by part" if measured else "Device time by part (no energy was measured)"
    return Drawing(family.table_name(name), title, figure, frame, f"{what} {_setting(lines)}")


def _both_devices(seconds: dict[str, float]) -> dict[str, float]:
    out: dict[str, float] = {}
    for key, value in seconds.items():
        part = key.partition(" ")[2]
        out[part] = out.get(part, 0.0) + value
    return out
