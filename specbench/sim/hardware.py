"""The machines that a pair may be put on: presets from data sheets (`conf/sim/devices`), or costs measured on this one.

A preset is a roofline: what its memory and its arithmetic allow, with nothing lost. It says how machines and schedules differ,
and is faster than anything that runs on them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from specbench.config.options import ConfigError
from specbench.config.paths import CONF_DIR
from specbench.config.specs import ModelSpec, PairSpec, local_folder
from specbench.pair.spec import resolve_path
from specbench.pair.stages import KEY, meant
from specbench.sim.costs import (
    ALONE,
    BESIDE,
    COMPANY,
    TURNS,
    Company,
    CostError,
    Costs,
    Curve,
    Grid,
    Link,
    Neighbours,
    Roofline,
    Sharing,
    Size,
)
from specbench.sim.described import machine_of, measured_of, read_yaml

FORMAT = 2  # of a file of measured costs
PRESETS = CONF_DIR / "sim" / "devices"


@dataclass(frozen=True)
class Shape:
    """What a model's configuration says of its size. head: parameters of the LM head, of all."""

    parameters: float
    layers: int
    kv_heads: int
    head_width: int
    head: float

    def first_layers(self, count: int) -> Shape:
        """The model of its first layers and its LM head."""
        layers = self.parameters - self.head
        return replace(self, parameters=self.head + layers * count / self.layers, layers=count)

    def size(self, weight_bytes: float) -> Size:
        """Its cache is kept in 16 bits, whatever the weights are."""
        return Size(self.parameters, 2.0 * 2 * self.layers * self.kv_heads * self.head_width, weight_bytes)


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def shape_of(spec: ModelSpec) -> Shape:
    """A model's shape, from the list of published ones or its own config.json. Raises ConfigError without either."""
    known = yaml.safe_load((CONF_DIR / "sim" / "models.yaml").read_text(encoding="utf-8"))
    if spec.name in known:
        return Shape(**known[spec.name])
    folder = local_folder(spec)
    if folder is None:
        raise ConfigError(f"pair.{spec.role}", spec.name, "its size is not known here: add it to conf/sim/models.yaml")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    try:
        width, heads, layers = config["hidden_size"], config["num_attention_heads"], config["num_hidden_layers"]
        kv_heads = config.get("num_key_value_heads") or heads
        head_width = config.get("head_dim") or width // heads
        attention = 2 * width * heads * head_width + 2 * width * kv_heads * head_width
        gated = attention + 3 * width * config["intermediate_size"]
        head = width * config["vocab_size"]
        return Shape(layers * gated + head, layers, kv_heads, head_width, head)
    except KeyError as error:
        remedy = f"its config.json has no {error.args[0]}: add the model to conf/sim/models.yaml"
        raise ConfigError(f"pair.{spec.role}", spec.name, remedy) from error


def stage_shape(pair: PairSpec, name: str) -> Shape:
    """Of a stage of a chain of drafts, named as `method.stages` has it (`pair.stages`). Raises ConfigError (method.stages)."""
    assert pair.draft is not None, "without a draft there is no chain"
    if name == "draft":
        return shape_of(pair.draft)
    target = shape_of(pair.target)
    model = meant(name, pair.target.name, lambda: target.layers)
    if isinstance(model, int):
        return target.first_layers(model)
    try:
        return shape_of(replace(pair.draft, name=model, path=resolve_path(model, "draft")))
    except ConfigError as error:
        raise ConfigError(KEY, name, error.remedy) from error


def load_costs(devices: str, pair: PairSpec, draft_share: float | None = None, stages: Sequence[str] = ()) -> Costs:
    """The costs of a pair on a preset, or on the machine whose measured costs a JSON file holds.

    draft_share: instead of the pair's draft one of so many of the target's parameters (presets only). stages: names of a chain
    of drafts (`stage_shape`), each a process of its own.
    Raises ConfigError for no such preset, a broken file, and a file that was measured with another pair.
    """
    if devices.endswith(".json"):
        if draft_share is not None:
            raise ConfigError("devices", devices, "a draft of another size was not measured: use a preset")
        return read_costs(Path(devices), pair)
    path = Path(devices) if devices.endswith((".yaml", ".yml")) else PRESETS / f"{devices}.yaml"
    if not path.is_file():
        raise ConfigError("devices", devices, f"possible: {', '.join(preset_names())}, a YAML like these, a measured .json")
    return preset_costs(devices, read_yaml(path, "devices"), pair, draft_share, stages)


def preset_costs(
    name: str, facts: Mapping[str, Any], pair: PairSpec, draft_share: float | None = None, stages: Sequence[str] = ()
) -> Costs:
    """Raises ConfigError for a preset that is wrong or lacks something, by the key (`described.machine_of`).

    Stages of a chain are where the draft is and share it, unless `each` says that every model has a device like it for itself.
    """
    machine = machine_of(name, facts)
    weight_bytes, each, link = machine.weight_bytes, machine.each, Link(**vars(machine.link))
    num_devices = 1 + max(1, len(stages)) if each else machine.num_devices
    sizes = {"target": shape_of(pair.target).size(weight_bytes)}
    if draft_share is not None:
        sizes["draft"] = sizes["target"].scaled(draft_share)
    elif pair.draft is not None:
        sizes["draft"] = shape_of(pair.draft).size(weight_bytes)
    for stage in stages:
        if stage != "draft":
            sizes[stage] = stage_shape(pair, stage).size(weight_bytes)
    curves, beside = dict[tuple[str, str], Curve](), dict[str, Company]()
    for role, size in sizes.items():
        alone = Roofline(size, **vars(machine.target if role == "target" else machine.draft))
        curves |= {(role, mode): alone for mode in (ALONE, TURNS)}
        beside[role] = Sharing(alone, frozenset(machine.shared), role == "target" or each)
    prefill = {role: curves[role, ALONE] for role in sizes}
    about = {"devices": name, "preset": dict(facts), "dtype": f"{8 * weight_bytes:g} bit"}
    return Costs(machine.title, "roofline", curves, prefill, link, num_devices, about, beside)


# ---------------------------------------------------------------------------------------------------- measured costs
def names_of(pair: PairSpec) -> dict[str, Any]:
    """What a file of costs holds of the pair that it was measured with."""
    return {spec.role: {"name": spec.name, "dtype": spec.dtype, "backend": spec.backend} for spec in models_of(pair)}


def models_of(pair: PairSpec) -> list[ModelSpec]:
    return [spec for spec in (pair.target, pair.draft) if spec is not None]


def read_costs(path: Path, pair: PairSpec | None = None) -> Costs:
    """Costs that `python -m specbench.sim measure` wrote. Raises ConfigError for a file that is none or another pair's."""
    file = measured_of(path, FORMAT)
    try:
        curves = {
            (entry["role"], entry["mode"]): Grid(entry["points"], f"{path.name}: {entry['role']} {entry['mode']}")
            for entry in file.curves
        }
        prefill = {role: Grid(points, f"{path.name}: {role} prefill") for role, points in file.prefill.items()}
    except CostError as error:
        raise ConfigError("devices", str(path), f"no file of measured costs: {error}") from error
    link = Link(file.latency_seconds, file.bytes_per_second or math.inf)
    beside = dict[str, Neighbours]()
    for role in prefill:
        company = [curves.pop((role, f"{BESIDE} {other}"), None) for other in COMPANY]
        if found := [curve for curve in company if curve is not None]:
            if len(found) < len(COMPANY):
                remedy = f"the {role} beside others has {len(found)} of {len(COMPANY)} curves: measure again"
                raise ConfigError("devices", str(path), f"no file of measured costs: {remedy}")
            beside[role] = Neighbours(tuple(found))
    if pair is not None:
        for spec in models_of(pair):
            name = file.pair.get(spec.role, {}).get("name")
            if name != spec.name:
                raise ConfigError(f"pair.{spec.role}", spec.name, f"{path} was measured with {name}: choose that pair")
    facts = {"devices": path.name, **{name: file.about.get(name) for name in ("pair", "machine", "measured_at", "threads")}}
    return Costs(file.label, "measured", curves, prefill, link, file.num_devices, facts, beside, file.around)
