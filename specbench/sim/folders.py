"""Simulated decoding as ordinary run folders, which say that they are: `source: simulated` in run.json.

The analysis keeps them in groups of their own, by machine and costs; a run never goes on in one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from specbench.config.schema import RunConfig, as_dict
from specbench.config.specs import PairSpec
from specbench.engine.sampling import SamplingLaw
from specbench.measure.lossless import compare
from specbench.measure.records import provenance
from specbench.measure.records.events import SIMULATED, Round, SampleRecord
from specbench.measure.records.store import RunStore
from specbench.measure.summary import build_summary
from specbench.run.arms import record_of
from specbench.sim.costs import Costs, Grid, Neighbours
from specbench.sim.hardware import models_of
from specbench.sim.play import Played


def costs_sha256(costs: Costs) -> str:
    """Of the curves themselves: two machines of one name need not cost the same."""
    shown: dict[str, Any] = {"link": repr(costs.link), "devices": costs.num_devices}
    if costs.around:
        shown["around"] = costs.around
    named: dict[str, Any] = {f"{role} {mode}": curve for (role, mode), curve in costs.curves.items()}
    named |= {f"{role} prefill": curve for role, curve in costs.prefill.items()}
    for role, company in costs.beside.items():
        several = company.curves if isinstance(company, Neighbours) else (company,)
        named |= {f"{role} beside {number}": curve for number, curve in enumerate(several)}
    shown |= {name: curve.points if isinstance(curve, Grid) else repr(curve) for name, curve in named.items()}
    return hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()


def records_of(arms: Mapping[str, Played]) -> list[tuple[SampleRecord, list[Round]]]:
    """Records of arms that decoded the same texts, prompt by prompt; repeated texts of a sample are its repeats."""
    found: list[tuple[SampleRecord, list[Round]]] = []
    seen: dict[tuple[str, str, int], int] = {}
    for number, texts in enumerate(zip(*(played.texts for played in arms.values()), strict=True)):
        for arm, text in zip(arms, texts, strict=True):
            key = (arm, text.sample_id, text.turn)
            repeat = seen[key] = seen.get(key, -1) + 1
            outcome = arms[arm].outcomes[number]
            facts = {"sample_id": text.sample_id, "turn": text.turn, "repeat": repeat, "arm": arm, "order": len(found)}
            record = record_of(outcome, **facts, category=None, prompt_ids=(1,) * text.prompt_length)
            found.append((record, outcome.rounds))
    return found


def write(
    config: RunConfig,
    pair: PairSpec,
    costs: Costs,
    arms: Mapping[str, Played],
    *,
    data_name: str,
    acceptance: str,
    seed: int,
) -> Path:
    """A finished run folder below config.runs_dir. arms: by name, method and baseline. Raises WriteError."""
    assert list(arms) == ["method", "baseline"], "both arms"
    limit = max((text.limit for played in arms.values() for text in played.texts), default=config.decoding.max_new_tokens)
    config = replace(config, decoding=replace(config.decoding, max_new_tokens=limit))  # what the texts had, not a run's default
    records = records_of(arms)
    label = f"{SIMULATED}: {costs.label} ({costs.source})"
    store = RunStore.create(config.runs_dir, config.method_name, data_name, as_dict(config))
    names = dict.fromkeys(record.sample_id for record, _ in records)
    draft = arms["method"].method.needs.draft != "none"
    store.write_run(
        {
            "source": SIMULATED,
            "simulation": {
                **costs.facts,
                "label": costs.label,
                "costs": costs.source,
                "costs_sha256": costs_sha256(costs),
                "acceptance": acceptance,
                "seed": seed,
            },
            "baseline": config.baseline_name,
            "pair": {
                "name": pair.name,
                **{m.role: {"name": m.name, "dtype": costs.facts.get("dtype", m.dtype)} for m in models_of(pair)},
            },
            "data": {"name": data_name, "source": SIMULATED, "sample_ids": list(names)},
            "device": SIMULATED,
            "num_devices": costs.num_devices if draft else 1,
            "method_facts": {arm: played.method.facts() for arm, played in arms.items()},
            "warnings": [f"{label}: no second of this run was measured, and its acceptance was given: {acceptance}"],
            "provenance": provenance.collect(),
        }
    )
    with store:
        for record, rounds in records:
            store.append(record, rounds)
    samples = [record for record, _ in records]
    summary = build_summary(
        {**store.run, "run_folder": str(store.folder), "status": "success"},
        samples,
        {record.key: rounds for record, rounds in records},
        lossless=compare(samples, claim=arms["method"].method.claim(SamplingLaw())).as_dict(),
    )
    store.write_summary(summary)
    store.set_status("success")
    return store.folder
