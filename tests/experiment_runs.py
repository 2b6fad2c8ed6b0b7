"""Synthetic runs of each experiment, in the settings of its YAML, for the tests of what is made of them; and its jobs."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import yaml
from analysis_runs import energy_of, write_run
from hydra.core.override_parser.overrides_parser import OverridesParser

from specbench.config.compose import compose
from specbench.config.paths import CONF_DIR
from specbench.config.schema import RunConfig
from specbench.front.launchers import combinations

PAPER_DATA = ("humaneval", "mt_bench", "refactorchat")
NOTHING = {
    "source": "none", "joules_per_token": None, "joules_per_token_why": "no accelerator, and no powercap counters",
    "baseline_joules_per_token": None, "baseline_joules_per_token_why": "no accelerator, and no powercap counters",
}  # fmt: skip
SPECULATIVE = {"baseline": "speculative", "baseline_gamma": 5}
WHEN = iter(range(100_000))


def both_arms(joules: float, baseline: float) -> dict[str, Any]:
    """An energy entry with both arms' parts and roles, as the energy pass leaves it."""
    made = energy_of(joules, baseline)
    made["baseline_joules_by_part"] = {"verify": 0.8 * baseline * 1000, "prefill": 0.05 * baseline * 1000,
                                       "draft": 0.0, "discarded_draft": 0.0, "wait": 0.15 * baseline * 1000}  # fmt: skip
    made |= {"baseline_num_output_tokens": 1000, "seconds": 20.0, "baseline_seconds": 20.0}
    made["joules_by_role"] = {"target": 0.6 * joules * 1000, "draft": 0.4 * joules * 1000}
    made["baseline_joules_by_role"] = {"target": 0.8 * baseline * 1000, "draft": 0.2 * baseline * 1000}
    return made


def paper(root: Path, measured: bool = False, **changes: Any) -> Path:
    for i, data in enumerate(PAPER_DATA):
        own = {"data": data, "seed": i, "when": 10 * i, "energy": NOTHING, **changes}
        power = {"power": True, "energy": both_arms(4.0, 6.0)} if measured and data == "refactorchat" else {}
        write_run(root, gamma=5, **own)
        write_run(root, gamma=5, alpha=0.6, options={"compat": "amusd"}, **own | power | {"when": 10 * i + 1})
        write_run(root, "amusd", gamma=3, free=True, **own | power | {"when": 10 * i + 2})
        write_run(root, "amusd", gamma=3, free=True, **own | SPECULATIVE | {"when": 10 * i + 3})
        handicap = {"baseline_options": {"compat": "amusd"}}
        write_run(root, "amusd", gamma=3, free=True, **own | SPECULATIVE | handicap | {"when": 10 * i + 4})
    return root


def rollback(root: Path, **changes: Any) -> Path:
    for i, data in enumerate((*PAPER_DATA, "specbench")):
        own = {"data": data, "seed": i, "when": 10 * i, "alpha": 0.5 + 0.1 * i, **changes}
        write_run(root, gamma=4, **own)
        write_run(root, "amusd", gamma=6, free=True, options={"stale": "plain"}, **own | {"when": 10 * i + 1})
        write_run(root, "amusd", gamma=6, free=True, options={"stale": "wait"}, **own | {"when": 10 * i + 2})
        if data in ("humaneval", "mt_bench"):
            sampled = {"alpha": 0.4, "temperature": 1.0, "claim": "sampling-exact", "when": 10 * i + 3}
            write_run(root, "amusd", gamma=6, free=True, options={"stale": "plain"}, **own | sampled)
    return root


def ratio(root: Path, measured: bool = False, **changes: Any) -> Path:
    number = 0
    energy = both_arms(4.0, 6.0) if measured else NOTHING
    for i, data in enumerate(PAPER_DATA):
        for target, share in (("builtin:target", 1.0), ("builtin:target_half", 1.7)):
            for draft, size, alpha in (("small", 0.15, 0.55), ("", 0.25, 0.7), ("large", 0.45, 0.75)):
                number += 1
                own: dict[str, Any] = {"data": data, "seed": i, "when": number, "alpha": alpha, "energy": energy, **changes}
                name = f"builtin:draft_{draft}".rstrip("_")
                write_run(root, "amusd", gamma=3, free=True, target=target, draft=name, draft_share=share * size,
                          pair_name="custom", **own)  # fmt: skip
    write_run(root, "autoregressive", gamma=0, mode="aa", when=900, target="builtin:target", pair_name="custom")
    return root


def energy(root: Path, measured: bool = True, entry: dict[str, Any] | None = None, **changes: Any) -> Path:
    for i, data in enumerate(PAPER_DATA):
        own = {"data": data, "seed": i, **changes}
        made = [entry or both_arms(4.7 + 0.1 * i, 4.0), both_arms(4.0, 6.0)] if measured else [NOTHING, NOTHING]
        write_run(root, "amusd", gamma=3, free=True, **own | SPECULATIVE | {"when": 10 * i, "energy": made[0]})
        write_run(root, gamma=4, **own | {"when": 10 * i + 1, "energy": made[1]})
    return root


# ------------------------------------------------------------------------------------------------ what is run
def planned(name: str) -> list[tuple[str, ...]]:
    """The options of every job of an experiment, as its sweep would start them."""
    sweeper = yaml.safe_load((Path(CONF_DIR) / "experiment" / f"{name}.yaml").read_text())["hydra"]["sweeper"]
    params = [f"{key}={value}" for key, value in sweeper["params"].items()]
    return [tuple(job) for job in combinations(OverridesParser.create().parse_overrides, params, sweeper["jobs"], [])[0]]


@functools.cache
def composed(name: str) -> list[RunConfig]:
    """The checked configurations of as few of its jobs as have every option, and every set of a method's, among them."""
    wanted = {job: {*job, frozenset(o for o in job if o.startswith(("method", "baseline")))} for job in planned(name)}
    seen: set[object] = set()
    configs = []
    while left := {job: len(own - seen) for job, own in wanted.items() if own - seen}:
        job = max(left, key=lambda job: left[job])
        seen |= wanted[job]
        configs.append(compose([f"experiment={name}", *job]))
    return configs


def under_other_conditions(folder: Path, copy: Path) -> Path:
    """The same runs as if the code had changed meanwhile."""
    shutil.copytree(folder, copy)
    for path in copy.rglob("run.json"):
        text = path.read_text()
        assert '"conditions_hash": "c0"' in text
        path.write_text(text.replace('"conditions_hash": "c0"', '"conditions_hash": "c1"'))
    return copy
