"""What a file must say of a machine, described (a preset's YAML) or measured (JSON): whatever else stands there is refused by
the key where it stands."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from specbench.config.options import ABOVE_ZERO, ConfigError, check_ranges, number, one_of, option, text, whole
from specbench.sim.costs import RATES

MOST_SECONDS = 1e6  # of anything that is done once: beyond it sums of floats lose the short ones
ROLES = ("target", "draft")
_RATE = (number, 1.0, 1e30, "a number of at least 1, such as 3.0e+12 (YAML reads 3e12 as a text)")
_SECONDS = (number, 0.0, MOST_SECONDS, "seconds of at least 0, such as 5.0e-6 (YAML reads 5e-6 as a text)")
REQUIRED: Any = None  # stands where an option has no default


@dataclass
class Device:
    """Of one model's device."""

    bytes_per_second: float = option(REQUIRED, *_RATE)
    flops_per_second: float = option(REQUIRED, *_RATE)
    overhead_seconds: float = option(0.0, *_SECONDS)


@dataclass
class Way:
    """Between two processes."""

    latency_seconds: float = option(REQUIRED, *_SECONDS)
    bytes_per_second: float = option(REQUIRED, *_RATE)


def _rates(key: str, values: object) -> None:
    if not isinstance(values, list):
        raise ConfigError(key, values, f"give a list of what all divide who are at work: any of {', '.join(RATES)}, or []")
    for value in values:
        one_of(key, value, *RATES)


@dataclass
class Machine:
    """A preset: see `conf/sim/devices` and `hardware.preset_costs`."""

    title: str = option(REQUIRED, text, "a text that names the machine in tables")
    num_devices: int = option(1, whole, 1)
    weight_bytes: float = option(REQUIRED, number, ABOVE_ZERO, 64.0, "bytes of one weight: a number above 0 and up to 64")
    target: Device = field(default=REQUIRED)
    draft: Device = field(default=REQUIRED)
    shared: list[str] = field(default=REQUIRED, metadata={"check": _rates})
    link: Way = field(default=REQUIRED)
    each: bool = False


_SECTIONS: dict[str, type] = {"target": Device, "draft": Device, "link": Way}


def machine_of(name: str, facts: object) -> Machine:
    """A preset's facts, checked. Raises ConfigError (`<name>.<key>`) for a key that is missing, unknown or wrong."""
    made: Machine = _section(name, facts, Machine)
    if not made.each:
        _required(name, facts, "num_devices")
    check_ranges(made, f"{name}.")
    return made


def _required(key: str, facts: Any, name: str) -> None:
    if name not in facts:
        raise ConfigError(f"{key}.{name}", None, "must be given: conf/sim/devices has complete descriptions")


def _section(key: str, facts: object, kind: type) -> Any:
    parts = {part.name: part for part in fields(kind)}
    if not isinstance(facts, Mapping):
        raise ConfigError(key, type(facts).__name__, f"a description gives {', '.join(parts)}, each with a colon behind it")
    for name in facts:
        if name not in parts:
            raise ConfigError(f"{key}.{name}", facts[name], f"no such key; possible: {', '.join(parts)}")
    for name, part in parts.items():
        if part.default is REQUIRED:
            _required(key, facts, name)
    return kind(**{n: _section(f"{key}.{n}", v, _SECTIONS[n]) if n in _SECTIONS else v for n, v in facts.items()})


def read_yaml(path: Path, key: str) -> Any:
    """What a YAML file holds. Raises ConfigError (`key`), on one line, for a file that cannot be read or is no YAML."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(key, str(path), f"is no YAML that can be read: {_why(error)}") from error


def _why(error: BaseException) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if isinstance(error, UnicodeDecodeError):
        return "it is no text in UTF-8"
    mark = getattr(error, "problem_mark", None)
    said = getattr(error, "problem", None) or getattr(error, "reason", None) or getattr(error, "msg", None)
    return f"{said or 'it is nested too deep'}" + (f" (line {mark.line + 1}, column {mark.column + 1})" if mark else "")


# ---------------------------------------------------------------------------------------------------- measured costs
@dataclass
class Measured:
    """What `specbench.sim measure` writes, as far as a simulation reads it. about: the whole file."""

    curves: list[dict[str, Any]]
    prefill: dict[str, Any]
    latency_seconds: float
    bytes_per_second: float | None
    label: str
    num_devices: int
    pair: dict[str, dict[str, Any]]
    around: dict[str, dict[str, float]]
    about: dict[str, Any]


def measured_of(path: Path, format_version: int) -> Measured:
    """A file of measured costs, its points unread. Raises ConfigError (devices) for any other, and one of another format."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ConfigError("devices", str(path), f"no file of measured costs: {_why(error)}") from error

    def is_there(name: str, found: Any, kind: type | tuple[type, ...], said: str) -> Any:
        if not isinstance(found, kind) or isinstance(found, bool):
            remedy = f"no file of measured costs: {name} is missing, or is not {said}: measure again"
            raise ConfigError("devices", str(path), remedy)
        return found

    def nested(name: str, found: Any) -> Any:
        for key, value in is_there(name, found, dict, "a mapping").items():
            is_there(f"{name}.{key}", value, dict, "a mapping")
        return found

    is_there("everything", stored, dict, "a mapping")
    if (found := stored.get("format_version")) != format_version:
        raise ConfigError("devices", str(path), f"is of format {found}, this version reads {format_version}: measure again")
    for place, curve in enumerate(is_there("curves", stored.get("curves"), list, "a list")):
        is_there(f"curves[{place}]", curve, dict, "a mapping")
        for name in ("role", "mode"):
            is_there(f"curves[{place}].{name}", curve.get(name), str, "a text")
        is_there(f"curves[{place}].points", curve.get("points"), list, "a list")
    link = is_there("link", stored.get("link"), dict, "a mapping")
    latency = is_there("link.latency_seconds", link.get("latency_seconds"), (int, float), "a number")
    speed = is_there("link.bytes_per_second", link.get("bytes_per_second") or 0, (int, float), "a number or null")
    if not 0 <= latency <= MOST_SECONDS or not speed >= 0:
        is_there("link", None, dict, "of times and rates that are")
    pair = is_there("pair", stored.get("pair"), dict, "a mapping")
    around = nested("around", stored.get("around", {}))
    for key, seconds in around.items():
        for role, value in seconds.items():
            is_there(f"around.{key}.{role}", value, (int, float), "a number")
    return Measured(
        curves=stored["curves"],
        prefill=is_there("prefill", stored.get("prefill"), dict, "a mapping"),
        latency_seconds=latency,
        bytes_per_second=speed or None,
        label=is_there("label", stored.get("label"), str, "a text"),
        num_devices=is_there("num_devices", stored.get("num_devices"), int, "a whole number"),
        pair=nested("pair", {role: pair[role] for role in ROLES if role in pair}),
        around=around,
        about=stored,
    )
