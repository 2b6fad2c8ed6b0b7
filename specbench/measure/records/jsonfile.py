"""JSON files that survive a kill: whole files replaced atomically, lines appended, a torn last line told from damage."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


class StoreError(ValueError):
    """A run folder that cannot be read as written; the message names file and line."""


class WriteError(OSError):
    """A file that cannot be written (disk full, folder read-only or gone); the message names it and why."""

    def __init__(self, path: Path, error: OSError):
        super().__init__(f"{path}: cannot be written: {error.strerror or error}; what was finished before is kept")


class TornLineWarning(UserWarning):
    """The last line of a file had no end: the process died while writing it. The line is left out."""


def _plain(value: Any) -> Any:
    """What json cannot write itself: numpy scalars and arrays, paths, dataclasses, sets."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if hasattr(value, "tolist"):  # numpy scalar or array
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} is no JSON value")


def _non_finite(value: Any, at: str = "") -> str | None:
    """The path of the first number that is not finite, for the error message."""
    if isinstance(value, float) and not math.isfinite(value):
        return at or "."
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    for key, item in items:
        found = _non_finite(item, f"{at}.{key}" if at else str(key))
        if found:
            return found
    return None


def dumps(value: Any, **options: Any) -> str:
    """JSON text without NaN or infinity. Raises ValueError naming the path of the number that is not finite."""
    try:
        return json.dumps(value, allow_nan=False, ensure_ascii=False, default=_plain, **options)
    except ValueError as error:
        where = _non_finite(json.loads(json.dumps(value, default=_plain)))
        raise ValueError(f"not a finite number at {where}: store null and the reason instead") from error


def or_why(key: str, value: Any, why: str) -> dict[str, Any]:
    """An entry of a file; a value that does not exist is null, with the reason beside it as `<key>_why`."""
    return {key: value} if value is not None else {key: None, f"{key}_why": why}


def canonical_json(value: Any) -> str:
    """One text per value: sorted keys, no spaces."""
    return dumps(value, sort_keys=True, separators=(",", ":"))


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of a run")


def loads(text: str | bytes) -> Any:
    """The value of JSON text, as `dumps` writes it. Raises ValueError also for NaN and infinities, which Python would read."""
    try:
        return json.loads(text, parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def write_atomically(path: Path, text: str) -> None:
    """Replace a file whole: readers see the old text or the new one, never a half. Raises WriteError."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise WriteError(path, error) from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)  # mkstemp makes files that only their owner can read
        os.replace(name, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(name)
        if isinstance(error, OSError):
            raise WriteError(path, error) from error
        raise


def cut_torn_line(path: Path) -> None:
    """Take out a last line that was not written to its end. Raises WriteError."""
    if not path.exists():
        return
    try:
        with path.open("rb+") as file:
            data = file.read()
            if not data or data.endswith(b"\n"):
                return
            start = data.rfind(b"\n") + 1
            try:
                json.loads(data[start:])
                file.write(b"\n")  # a whole line that lost only its end
            except ValueError:
                file.truncate(start)
    except OSError as error:
        raise WriteError(path, error) from error


def _no_pipe(path: Path) -> None:
    """To open one would wait for ever. Raises StoreError."""
    if path.exists() and not path.is_file():
        raise StoreError(f"{path}: no file")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All lines of a JSONL file. Only an unterminated last line may be broken; a missing file is empty."""
    if not path.exists():
        return []
    _no_pipe(path)
    rows: list[dict[str, Any]] = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        last = number == len(lines)
        if last and not line:
            break
        try:
            row = loads(line.decode())
            if not isinstance(row, dict):
                raise ValueError("not a JSON object")
        except ValueError as error:  # JSON and UTF-8 errors are both ValueErrors
            if last:
                warnings.warn(f"{path}:{number}: torn last line left out", TornLineWarning, stacklevel=3)
                break
            raise StoreError(f"{path}:{number}: {error}; the file was damaged after it was written") from error
        rows.append(row)
    return rows


def read_json(path: Path) -> dict[str, Any]:
    _no_pipe(path)
    try:
        value = loads(path.read_bytes())
    except FileNotFoundError as error:
        raise StoreError(f"{path}: not there; is {path.parent} a run folder?") from error
    except ValueError as error:
        raise StoreError(f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise StoreError(f"{path}: not a JSON object")
    return value
