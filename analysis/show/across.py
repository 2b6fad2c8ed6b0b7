"""One configuration on several machines, side by side: listed, never averaged."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from specbench.analysis.derive.conditions import Group, conditions_of, data_key, draft_key, pair_key
from specbench.analysis.derive.derive import Estimate
from specbench.analysis.derive.ranking import is_ranked
from specbench.analysis.read.frames import Frames
from specbench.analysis.read.run_rows import options_text
from specbench.analysis.read.shape import entry
from specbench.analysis.show.captions import definitions
from specbench.analysis.show.cells import Column, Row, row_of
from specbench.analysis.show.members import DATA, LOSSLESS, PAIR
from specbench.analysis.show.table import Table

_OF_THE_MACHINE = ("conditions_hash", "device", "pair.target.device", "engine.threads")


def configuration_of(run: Mapping[str, Any]) -> str:
    """What two machines must agree in to stand in one row: everything but code, packages, device and threads."""
    settings = {name: value for name, value in conditions_of(run).items() if name not in _OF_THE_MACHINE}
    method = [entry(run, "config.method_name"), options_text(entry(run, "config.method") or {})]
    weights, dtype, _, errors, _ = draft_key(run)  # on whatever device
    draft = [weights, dtype, errors]
    samples = entry(run, "data.sample_ids")
    return json.dumps([settings, method, pair_key(run), draft, data_key(run), samples], sort_keys=True, default=str)


def across_machines(frames: Frames, groups: Sequence[Group]) -> Table:
    """A row per configuration and machine; rows of one configuration stand together."""
    found: dict[str, list[tuple[Group, int]]] = {}
    for group in groups:
        for run in group.runs.index:
            found.setdefault(configuration_of(frames.facts[run]), []).append((group, run))

    def commit(run: int) -> str:
        return str(entry(frames.facts[run], "provenance.git.commit") or "unknown")[:8]

    columns = [
        Column("method", "method", merge=True, text=True, of=lambda item: item.label),
        PAIR,
        DATA,
        Column("machine", "machine", text=True, of=lambda item: str(item.facts["machine"])),
        Column("device", "device", text=True, of=lambda item: str(item.facts["device"])),
        Column("conditions", "conditions", digits=0, of=lambda item: item.group.number),
        Column("commit", "code", text=True, of=lambda item: commit(item.run)),
        Column("emitted_per_round", "emitted/round", of=lambda item: item.facts["emitted_per_round"]),
        Column("tokens_per_second", "tokens/s", digits=1, of=lambda item: item.facts["tokens_per_second"]),
        Column("speedup", "speed-up", of=lambda item: Estimate(*item.facts[["speedup", "speedup_low", "speedup_high"]])),
        Column("joules_per_token", "J/token", digits=3, of=lambda item: item.facts["joules_per_token"]),
        LOSSLESS,
    ]
    rows: list[Row] = []
    alone = 0
    for members in found.values():
        if len({group.number for group, _ in members}) < 2:
            alone += 1
            continue
        label = str(members[0][0].runs.loc[members[0][1], "label"])
        for group, run in members:
            item = SimpleNamespace(facts=group.runs.loc[run], group=group, run=run, label=label)
            rows.append(row_of(columns, item, ranked=is_ranked(item.facts)))
    notes = [f"{alone} configurations were run under one set of conditions only and are not listed."] if alone else []
    caption = (
        "The same configuration (method and options, weights, prompts, decoding law) wherever it was run; conditions: the "
        "chapter that the run belongs to. Rows are listed side by side and never averaged or ranked: between machines "
        "only emitted per round should agree. "
        f"{definitions('speedup', 'tokens_per_second', 'emitted_per_round', 'lossless')}"
    )
    return Table("across_machines", "One configuration across machines", columns, rows, caption, notes).drop_empty_columns()
