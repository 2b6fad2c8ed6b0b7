"""What is wrong with an option, and the checkers that say so: one place for the schema and all constructors."""

from __future__ import annotations

import math


class ConfigError(ValueError):
    """A wrong option: one line that names the key, the value and the remedy."""

    def __init__(self, key: str, value: object, remedy: str):
        super().__init__(f"{key}={value!r}: {remedy}")
        self.key, self.value, self.remedy = key, value, remedy

    def __reduce__(self) -> tuple[type[ConfigError], tuple[str, object, str]]:
        return type(self), (self.key, self.value, self.remedy)  # travels between processes


def text(key: str, value: object, remedy: str) -> None:
    """Refuse all but a text that says something."""
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(key, value, remedy)


def one_of(key: str, value: object, *possible: str) -> None:
    """Refuse all but the listed values."""
    if value not in possible:
        raise ConfigError(key, value, f"possible: {', '.join(possible)}")


def whole(key: str, value: object, low: int, null: str | None = None) -> None:
    """Refuse all but integers of at least `low`; None too, where `null` says what it means."""
    if value is None and null is not None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigError(key, value, f"possible: an integer of at least {low}" + (f", or null ({null})" if null else ""))


def number(key: str, value: object, low: float, high: float, possible: str) -> None:
    """Refuse all but numbers from `low` to `high`; infinities and NaN whatever the bounds."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not low <= value <= high:
        raise ConfigError(key, value, f"possible: {possible}")
