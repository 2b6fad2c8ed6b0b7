"""Folders that training writes and options name (heads, datastores): what they say of themselves, read with care."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specbench.config.options import ConfigError
from specbench.measure.records.jsonfile import StoreError, read_json


def read_description(path: Path, key: str, needed: Mapping[str, type]) -> dict[str, Any]:
    """A JSON file that has at least these entries. Raises ConfigError (`key`, its folder) for one that is damaged."""
    folder = str(path.parent)
    try:
        stored = read_json(path)
    except (StoreError, OSError) as error:
        raise ConfigError(key, folder, f"cannot be read: {error}") from error
    for name, kind in needed.items():
        if not isinstance(stored.get(name), kind):
            raise ConfigError(key, folder, f"damaged: no {name} in its {path.name}; make it again, or copy it anew")
    return stored
