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

from specbench.config.options import ABOVE_ZERO, ConfigError, number, one_of
from specbench.config.paths import CONF_DIR
from specbench.config.specs import ModelSpec, PairSpec, local_folder
from specbench.pair.spec import resolve_path
from specbench.pair.stages import KEY, meant
from specbench.sim.costs import (
    ALONE,
    BESIDE,
    COMPANY,
    RATES,
    TURNS,
    Company,
    Costs,
    Curve,
    Grid,
    Link,
    Neighbours,
    Roofline,
    Sharing,
    Size,
)

FORMAT = 2  # of a file of measured costs
PRESETS = CONF_DIR / "sim" / "devices"
ROLES = ("target", "draft")


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
    facts = yaml.safe_load(path.read_text(encoding="utf-8"))
    return preset_costs(devices, facts, pair, draft_share, stages)


def preset_costs(
    name: str, facts: Mapping[str, Any], pair: PairSpec, draft_share: float | None = None, stages: Sequence[str] = ()
) -> Costs:
    """Raises ConfigError for a preset that lacks something or gives a rate that is none.

    Stages of a chain are where the draft is and share it, unless `each` says that every model has a device like it for itself.
    """
    try:
        weight_bytes, shared = facts["weight_bytes"], facts["shared"]
        for role in ROLES:
            for rate in RATES:
                number(f"{name}.{role}.{rate}", facts[role][rate], ABOVE_ZERO, math.inf, "a number above 0")
        for rate in shared:
            one_of(f"{name}.shared", rate, *RATES)
        link = Link(facts["link"]["latency_seconds"], facts["link"]["bytes_per_second"])
        label, each, number_of = str(facts["title"]), bool(facts.get("each")), max(1, len(stages))
        num_devices = 1 + number_of if each else int(facts["num_devices"])
    except (KeyError, TypeError) as error:
        raise ConfigError("devices", name, f"its description lacks or misplaces {error}") from error
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
        device = facts["target" if role == "target" else "draft"]
        rates = {rate: float(device[rate]) for rate in RATES}
        overhead = float(device.get("overhead_seconds", 0.0))
        alone = Roofline(size, **rates, overhead_seconds=overhead)
        curves |= {(role, mode): alone for mode in (ALONE, TURNS)}
        beside[role] = Sharing(alone, frozenset(shared), role == "target" or each)
    prefill = {role: curves[role, ALONE] for role in sizes}
    about = {"devices": name, "preset": dict(facts), "dtype": f"{8 * weight_bytes:g} bit"}
    return Costs(label, "roofline", curves, prefill, link, num_devices, about, beside)


# ---------------------------------------------------------------------------------------------------- measured costs
def names_of(pair: PairSpec) -> dict[str, Any]:
    """What a file of costs holds of the pair that it was measured with."""
    return {spec.role: {"name": spec.name, "dtype": spec.dtype, "backend": spec.backend} for spec in models_of(pair)}


def models_of(pair: PairSpec) -> list[ModelSpec]:
    return [spec for spec in (pair.target, pair.draft) if spec is not None]


def read_costs(path: Path, pair: PairSpec | None = None) -> Costs:
    """Costs that `python -m specbench.sim measure` wrote. Raises ConfigError for a file that is none or another pair's."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["format_version"] != FORMAT:
            raise ConfigError("devices", str(path), f"is of format {stored['format_version']}, this version reads {FORMAT}")
        curves = {
            (entry["role"], entry["mode"]): Grid(entry["points"], f"{path.name}: {entry['role']} {entry['mode']}")
            for entry in stored["curves"]
        }
        prefill = {role: Grid(points, f"{path.name}: {role} prefill") for role, points in stored["prefill"].items()}
        link = Link(stored["link"]["latency_seconds"], stored["link"].get("bytes_per_second") or math.inf)
        beside = {
            role: Neighbours(tuple(curves.pop((role, f"{BESIDE} {other}")) for other in COMPANY))
            for role in prefill
            if (role, f"{BESIDE} {COMPANY[0]}") in curves
        }
        label, num_devices, measured = stored["label"], stored["num_devices"], stored["pair"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        why = f"it lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ConfigError("devices", str(path), f"no file of measured costs: {why}") from error
    if pair is not None:
        for spec in models_of(pair):
            name = measured.get(spec.role, {}).get("name")
            if name != spec.name:
                raise ConfigError(f"pair.{spec.role}", spec.name, f"{path} was measured with {name}: choose that pair")
    facts = {"devices": path.name, **{name: stored.get(name) for name in ("pair", "machine", "measured_at", "threads")}}
    return Costs(label, "measured", curves, prefill, link, num_devices, facts, beside, stored.get("around", {}))
