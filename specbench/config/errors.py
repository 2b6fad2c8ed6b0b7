"""One clear line for everything that can be wrong with the options of a run.

Hydra and OmegaConf say what they could not do; a person wants to know which option, what was given and what is possible.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from specbench.config.options import ConfigError
from specbench.config.schema import FILLED_IN, RunConfig

_HIDDEN = ("hydra", "_target_", *FILLED_IN)
_WORDS: dict[Any, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a text",
    list: "a list: [a,b]",
    dict: "a node: {a: b}",
    type(None): "null",
}


def explain(error: BaseException, overrides: Sequence[str], schema: type = RunConfig) -> str | None:
    """The line (without prefix) for a wrong option; None for another kind of error. `overrides`: what the user typed. schema:
    the dataclass that says what there is."""
    if isinstance(error, MissingConfigException):
        return _missing_choice(error, overrides)
    if isinstance(error, OverrideParseException):
        reason = _one_line(str(error.__cause__ or error).split("See https")[0])
        return (
            f"{error.override}: cannot be read ({reason}); options are written key=value, values with special signs in quotes"
        )
    cause = _omegaconf_cause(error)
    if cause is not None and cause.full_key:
        return _wrong_key_or_value(cause, overrides, schema)
    if isinstance(error, HydraException) or cause is not None:
        return _other(str(error), overrides)
    if isinstance(error, ValueError):  # run's own, and some of Hydra's
        return _other(str(error), overrides) if "override" in str(error) else _one_line(str(error))
    return None


def unknown(key: str, value: str | None, siblings: Iterable[str], schema: type = RunConfig) -> str:
    """An option that does not exist: the nearest that do, then all in the same place."""
    possible = sorted(name for name in siblings if name.rpartition(".")[2] not in _HIDDEN)
    leaf = key.rpartition(".")[2]
    moved = [name for name in schema_keys(schema) if name.rpartition(".")[2] == leaf and name != key]
    places = {name.rpartition(".")[2]: name for name in possible}
    near = moved or [places[name] for name in difflib.get_close_matches(leaf, places, n=2, cutoff=0.7)]
    hint = f" did you mean {' or '.join(near)}?" if near else ""
    listed = ", ".join("method@baseline" if name == "baseline" else name for name in possible)
    if not possible:
        section = key.rpartition(".")[0]
        node = f"{section}='{{_target_: <class>, {leaf}: {'<value>' if value is None else value}}}'"
        return f"{_assignment(key, value)}: unknown option; {section} is one value, options of its own need a node: {node}"
    return f"{_assignment(key, value)}: unknown option;{hint} possible: {listed}"


def schema_keys(schema: type = RunConfig) -> list[str]:
    """Every option that core declares, by full name (a plugin's own keys are not among them)."""
    return list(_named(schema, ""))


def _named(cls: type, prefix: str) -> Iterator[str]:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _named(hints[field.name], f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def _expected(key: str, schema: type) -> str | None:
    """What an option of the schema takes, in words; None for keys that the schema leaves open."""
    hint: Any = schema
    for name in key.split("."):
        if dataclasses.is_dataclass(hint):
            hint = typing.get_type_hints(hint).get(name)
        else:  # sections by name, such as `parts` of a training
            hint = typing.get_args(hint)[1] if typing.get_origin(hint) is dict else None
    if hint is None or hint is Any or dataclasses.is_dataclass(hint):
        return None
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return " or ".join(_WORDS.get(typing.get_origin(kind) or kind, "a text") for kind in kinds)


def refuse_numbers_for_flags(overrides: Sequence[str], schema: type = RunConfig) -> None:
    """OmegaConf takes every number but 0 for true. Raises ConfigError for one that is neither 0 nor 1."""
    for override in overrides:
        key, _, value = override.partition("=")
        name = key.lstrip("+")
        if re.fullmatch(r"[+-]?\d[\d_]*", value) and int(value) not in (0, 1) and _expected(name, schema) == _WORDS[bool]:
            raise ConfigError(name, int(value), f"wrong type; possible: {_WORDS[bool]}")


def _wrong_key_or_value(cause: OmegaConfBaseException, overrides: Sequence[str], schema: type) -> str:
    key = str(cause.full_key)
    value = _given(key, overrides)
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and not isinstance(cause, InterpolationResolutionError):
        parent = cause.parent_node
        section = key.rpartition(".")[0]
        siblings = [f"{section}.{name}" if section else str(name) for name in parent] if parent is not None else []
        return unknown(key, value, siblings, schema)
    if isinstance(cause, MissingMandatoryValue):
        return f"{key}=???: must be given; write {key}=<{_expected(key, schema) or 'value'}>"
    if isinstance(cause, ValidationError):
        inside = next((o for o in overrides if o.lstrip("+~").startswith(f"{key}.")), None)
        if inside is not None:
            return f"{inside}: unknown option; {key} takes {_expected(key, schema) or 'a value'}, and has no options of its own"
        options = [name for name in schema_keys(schema) if name.startswith(f"{key}.")]
        if options:
            return f"{_assignment(key, value)}: is a section and takes no value; possible: {', '.join(options)}"
        if expected := _expected(key, schema):
            return f"{_assignment(key, value)}: wrong type; possible: {expected}"
    reason = _one_line(str(cause.msg or cause).split("\n    full_key")[0])
    return f"{_assignment(key, value)}: {reason}"


def _missing_choice(error: MissingConfigException, overrides: Sequence[str]) -> str:
    path = error.missing_cfg_file
    if not isinstance(path, str):
        return _other(str(error), overrides)
    group, _, name = path.rpartition("/")
    options = sorted(option for option in error.options or () if not option.startswith("_"))
    near = difflib.get_close_matches(name, options, n=2)
    hint = f" did you mean {' or '.join(near)}?" if near else ""
    listed = ", ".join(options) or "none found"
    for override in reversed(overrides):
        key, _, value = override.partition("=")
        if key.lstrip("+~").partition("@")[0] == group and name in value.split(","):
            return f"{key}={name}: unknown choice;{hint} possible: {listed}"
    where = _one_line(str(error)).partition(":")[0]
    return f"{path}: no such configuration ({where});{hint} possible: {listed}"


def _omegaconf_cause(error: BaseException) -> OmegaConfBaseException | None:
    """The first OmegaConf error in a chain of causes: the one that knows key and container."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OmegaConfBaseException):
            return seen
        seen = seen.__cause__
    return None


def _given(key: str, overrides: Sequence[str]) -> str | None:
    """What the user wrote for a key, or None if it came from a file."""
    for override in reversed(overrides):
        name, _, given = override.partition("=")
        if given and name.lstrip("+~") == key:
            return given
    # decoding.seed.x=1 fails at decoding.seed
    return next((o.partition("=")[2] for o in reversed(overrides) if o.lstrip("+~").startswith(f"{key}.")), None)


def _assignment(key: str, value: str | None) -> str:
    return key if value is None else f"{key}={value}"


def _other(message: str, overrides: Sequence[str]) -> str:
    """Hydra's own words, on one line, behind the option they speak of (or behind all options given)."""
    lines = [line for line in message.splitlines() if not line.startswith("To append to your")]
    text = _one_line(" ".join(lines))
    quoted = re.search(r"'([^'=]+)(=[^']*)?'", text)
    named = [o for o in overrides if quoted and o.partition("=")[0].lstrip("+~") == quoted.group(1)]
    if text.startswith("Ambiguous value"):
        text = "several values; add -m to sweep over them, or write [a,b] for a list"
    about = named[-1] if named else " ".join(overrides)
    return f"{about}: {text}" if about else text


def _one_line(text: str) -> str:
    return " ".join(text.split())
