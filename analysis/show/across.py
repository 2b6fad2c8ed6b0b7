"""One configuration on several machines, side by side: listed, never averaged."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from specbench.analysis.derive.conditions import Group, conditions_of, data_key, draft_key, pair_key
from specbench.analysis.derive.derive import is_ranked
from specbench.analysis.read.frames import Frames
from specbench.analysis.read.run_rows import options_text
from specbench.analysis.show.captions import definitions, verdict_text
from specbench.analysis.show.table import Cell, Column, Row, Table

_OF_THE_MACHINE = ("conditions_hash", "device", "pair.target.device", "engine.threads")


def configuration_of(run: Mapping[str, Any]) -> str:
    """What two machines must agree in to stand in one row: everything but code, packages, device and threads."""
    config = run.get("config", {})
    settings = {name: value for name, value in conditions_of(run).items() if name not in _OF_THE_MACHINE}
    method = [config.get("method_name"), options_text(config.get("method") or {})]
    weights, dtype, _, errors = draft_key(run)  # on whatever device
    draft = [weights, dtype, errors]
    samples = (run.get("data") or {}).get("sample_ids")
    return json.dumps([settings, method, pair_key(run), draft, data_key(run), samples], sort_keys=True, default=str)


def across_machines(frames: Frames, groups: Sequence[Group]) -> Table:
    """A row per configuration and machine; rows of one configuration stand together."""
    found: dict[str, list[tuple[Group, int]]] = {}
    for group in groups:
        for run in group.runs.index:
            found.setdefault(configuration_of(frames.facts[run]), []).append((group, run))
    rows: list[Row] = []
    alone = 0
    for members in found.values():
        if len({group.number for group, _ in members}) < 2:
            alone += 1
            continue
        label = Cell(str(members[0][0].runs.loc[members[0][1], "label"]))
        for group, run in members:
            facts = group.runs.loc[run]
            commit = str(((frames.facts[run].get("provenance") or {}).get("git") or {}).get("commit") or "unknown")[:8]
            cells = {
                "method": label,
                "pair": Cell(str(facts["pair_label"])),
                "data": Cell(str(facts["data_label"])),
                "machine": Cell(str(facts["machine"])),
                "device": Cell(str(facts["device"])),
                "conditions": Cell(float(group.number), digits=0),
                "commit": Cell(commit),
                "emitted_per_round": Cell.of(facts["emitted_per_round"]),
                "tokens_per_second": Cell.of(facts["tokens_per_second"], digits=1),
                "speedup": Cell.of(facts["speedup"], facts["speedup_low"], facts["speedup_high"]),
                "joules_per_token": Cell.of(facts["joules_per_token"], digits=3),
                "lossless": Cell(verdict_text(facts)),
            }
            rows.append(Row(cells, ranked=is_ranked(facts)))
    columns = [
        Column("method", "method", merge=True, text=True),
        Column("pair", "pair", merge=True, text=True),
        Column("data", "data", merge=True, text=True),
        Column("machine", "machine", text=True),
        Column("device", "device", text=True),
        Column("conditions", "conditions"),
        Column("commit", "code", text=True),
        Column("emitted_per_round", "emitted/round"),
        Column("tokens_per_second", "tokens/s"),
        Column("speedup", "speed-up"),
        Column("joules_per_token", "J/token"),
        Column("lossless", "lossless", text=True),
    ]
    notes = [f"{alone} configurations were run under one set of conditions only and are not listed."] if alone else []
    return Table(
        "across_machines",
        "One configuration across machines",
        columns,
        rows,
        "The same configuration (method and options, weights, prompts, decoding law) wherever it was run; conditions: the "
        "chapter that the run belongs to. Rows are listed side by side and never averaged or ranked: between machines "
        "only emitted per round should agree. " + definitions("speedup", "tokens_per_second", "emitted_per_round", "lossless"),
        notes,
    ).drop_empty_columns()  # fmt: skip
