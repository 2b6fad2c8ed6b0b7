"""What is wrong with an option, and the checkers that say so: one place for the schema and all constructors."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import field, fields, is_dataclass
from typing import Any

ABOVE_ZERO = math.ulp(0.0)  # the smallest number that is


_SPELLED: dict[object, str] = {None: "null", True: "true", False: "false"}  # as a person writes them


def _spelled(value: object, otherwise: Callable[[object], str]) -> str:
    return _SPELLED[value] if value is None or isinstance(value, bool) else otherwise(value)


class ConfigError(ValueError):
    """A wrong option: one line that names the key, the value and the remedy."""

    def __init__(self, key: str, value: object, remedy: str):
        super().__init__(f"{key}={_spelled(value, repr)}: {remedy}")
        self.key, self.value, self.remedy = key, value, remedy

    def __reduce__(self) -> tuple[type[ConfigError], tuple[str, object, str]]:
        return type(self), (self.key, self.value, self.remedy)  # travels between processes


class UnfitError(ConfigError):
    """Nothing is wrong with what was asked for, but the pair has not what it takes (a draft model, heads, a datastore)."""


# ---------------------------------------------------------------------------------------------------- the four checkers
def text(key: str, value: object, remedy: str, pattern: str = r".*\S.*", null: bool = False) -> None:
    """Refuse all but a text that says something (that `pattern` matches as a whole); None too, where `null` allows it."""
    if value is None and null:
        return
    if not isinstance(value, str) or not re.fullmatch(pattern, value, re.DOTALL):
        raise ConfigError(key, value, remedy)


def one_of(key: str, value: object, *possible: str | int | None) -> None:
    """Refuse all but the listed values."""
    if not any(value == p and isinstance(value, bool) == isinstance(p, bool) for p in possible):
        raise ConfigError(key, value, f"possible: {', '.join(_spelled(p, str) for p in possible)}")


def each(key: str, values: object, check: Callable[..., None], *limits: Any, none: bool = False, **more: Any) -> None:
    """Refuse all but lists of at least one value that the checker takes. none: or of no value."""
    if not isinstance(values, list | tuple) or not (values or none):
        raise ConfigError(key, values, "give one value or several with commas between")
    for value in values:
        check(key, value, *limits, **more)


def whole(key: str, value: object, low: int, null: str | None = None, auto: bool = False, high: int | None = None) -> None:
    """Refuse all but integers of at least `low`, and at most `high` where there is such a limit; None too, where `null` says
    what it means, and "auto" where it is allowed."""
    if (value is None and null is not None) or (auto and value == "auto"):
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        within = f"of at least {low}" if high is None else f"from {low} to {high:,}"
        possible = f"{'auto or ' if auto else ''}an integer {within}"
        raise ConfigError(key, value, f"possible: {possible}" + (f", or null ({null})" if null else ""))


def not_together(key: str, value: object, rows: int, most: int, what: str, **others: object) -> None:
    """Refuse what is possible option by option and too much together: `rows` of `what` with the `others` as they are."""
    if rows > most:
        beside = " and ".join(f"{name}={other}" for name, other in others.items())
        raise ConfigError(key, value, f"with {beside} {what.format(rows=f'{rows:,}')}: {most:,} at most, take fewer")


def number(key: str, value: object, low: float, high: float, possible: str, null: bool = False) -> None:
    """Refuse all but numbers from `low` to `high`; infinities and NaN whatever the bounds; None too, where `null` allows it.

    low: ABOVE_ZERO where 0 itself is none of them.
    """
    if value is None and null:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not low <= value <= high:
        raise ConfigError(key, value, f"possible: {possible}")


# ---------------------------------------------------------------------------------------------------- ranges of dataclasses
def option(default: Any, check: Callable[..., None], *limits: Any, **more: Any) -> Any:
    """A dataclass field with its range, a checker and what it takes behind key and value: `seed: int = option(0, whole, 0)`."""
    return field(default=default, metadata={"check": lambda key, value: check(key, value, *limits, **more)})


def check_ranges(options: Any, prefix: str = "") -> None:
    """Raise ConfigError for the first field of a dataclass, its sections included, that is outside the range of its `option`.

    prefix: of the keys ("data."). Fields that are declared as bool are checked whatever they are made with.
    """
    for part in fields(options):
        key, value = prefix + part.name, getattr(options, part.name)
        if is_dataclass(value):
            check_ranges(value, f"{key}.")
        elif isinstance(value, dict) and any(map(is_dataclass, value.values())):  # sections by name
            for name, section in value.items():
                check_ranges(section, f"{key}.{name}.")
        elif part.type in (bool, "bool") and not isinstance(value, bool):
            raise ConfigError(key, value, "possible: true, false")
        elif "check" in part.metadata:
            part.metadata["check"](key, value)


def flag(key: str, value: object) -> None:
    """Refuse all but true and false."""
    if not isinstance(value, bool):
        raise ConfigError(key, value, "possible: true, false")
