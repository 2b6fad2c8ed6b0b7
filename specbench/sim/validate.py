"""Simulated against measured: the same prompts, acceptance and options, on costs that were measured on the same machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specbench.analysis.show.cells import Column, row_of
from specbench.analysis.show.table import Table
from specbench.config.options import ConfigError
from specbench.config.schema import from_dict
from specbench.measure.records import store
from specbench.measure.records.events import SIMULATED
from specbench.pair.spec import specify
from specbench.sim.acceptance import recorded_texts, refuse_chain
from specbench.sim.compare import quiet
from specbench.sim.hardware import load_costs
from specbench.sim.play import Played, play


@dataclass(frozen=True)
class Check:
    """One run, measured and simulated; seconds and tokens of the samples that both of its arms finished."""

    folder: str
    method: str
    rounds: int
    simulated_rounds: int
    seconds: float
    simulated_seconds: float
    baseline_seconds: float
    simulated_baseline_seconds: float

    @property
    def speedup(self) -> float:
        return self.baseline_seconds / self.seconds

    @property
    def simulated_speedup(self) -> float:
        return self.simulated_baseline_seconds / self.simulated_seconds

    @staticmethod
    def error(simulated: float, real: float) -> float:
        """In percent of the measured."""
        return 100 * (simulated / real - 1)


def as_settled(node: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a run had: those that were left to it as it settled them by its own measurement."""
    return {key: facts.get(key, value) if value in (None, "auto") else value for key, value in node.items()}


def check(folder: str, devices: str, seed: int) -> Check:
    """Play a run again. Raises ConfigError for a folder that is no finished measured run of a method with a baseline."""
    try:
        run = store.read_run(folder)
        samples, rounds = store.read_samples(folder), store.read_rounds(folder)
    except store.StoreError as error:
        raise ConfigError("validate", folder, f"no run to compare with: {error}") from error
    if run.get("source") == SIMULATED or run.get("status") != "success":
        raise ConfigError("validate", folder, "name a finished run that was measured")
    refuse_chain(run, "validate", folder)
    config = from_dict(run["config"])
    done = {record.key for record in samples if record.decode_seconds is not None and record.num_rounds}
    both = [r for r in samples if r.arm == "method" and r.key in done and (*r.key[:3], "baseline") in done]
    if not both:
        raise ConfigError("validate", folder, "no sample was finished by both arms: there is no speed-up to compare with")
    texts, _ = recorded_texts(both, rounds, config.decoding.max_new_tokens, seed)
    costs = load_costs(devices, specify(config.pair, config.engine.attention))
    with quiet():
        facts = run.get("method_facts", {})
        nodes = {arm: as_settled(getattr(config, arm), facts.get(arm, {})) for arm in ("method", "baseline")}
        played: dict[str, Played] = {arm: play(node, costs, texts, arm) for arm, node in nodes.items()}
    real = {record.key: record.decode_seconds or 0.0 for record in samples}
    return Check(
        folder,
        config.method_name,
        sum(r.num_rounds or 0 for r in both),
        sum(len(outcome.rounds) for outcome in played["method"].outcomes),
        sum(real[r.key] for r in both),
        played["method"].decode_seconds,
        sum(real[(*r.key[:3], "baseline")] for r in both),
        played["baseline"].decode_seconds,
    )


def table_of(checks: Sequence[Check], source: str) -> Table:
    def error(name: str) -> Any:
        return lambda c: Check.error(getattr(c, f"simulated_{name}"), getattr(c, name))

    columns = [
        Column("method", "method", text=True, of=lambda c: c.method),
        Column("speedup", "speed-up", "measured", of=lambda c: c.speedup),
        Column("simulated_speedup", "speed-up", "simulated", of=lambda c: c.simulated_speedup),
        *(
            Column(f"{name}_error_percent", label, "simulated against measured, %", of=error(name), digits=1)
            for name, label in (
                ("speedup", "speed-up"),
                ("seconds", "time"),
                ("baseline_seconds", "baseline's time"),
                ("rounds", "rounds"),
            )
        ),
        Column("folder", "run", text=True, of=lambda c: Path(c.folder).name),
    ]
    caption = f"Costs: {source}. Acceptance, prompts and lengths: the run's own."
    return Table(
        "validation", "Simulated against measured", columns, [row_of(columns, c, ranked=False) for c in checks], caption
    )
