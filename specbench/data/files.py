"""Bytes on disk to rows and checksums, and the places where a local file may lie."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from pathlib import Path
from typing import Any

from specbench.config.options import ConfigError
from specbench.config.schema import DataConfig

DATA_VARIABLE = "SPECBENCH_DATA"  # environment: a folder with the published files
SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
NAMED = 10  # bad lines in a message


def sha256_of(path: Path) -> str:
    """Hex sha256 of the file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a .jsonl, .jsonl.gz or .parquet file, as plain dicts and lists.

    Raises ValueError naming the file (and line) when it cannot be read as what its suffix says.
    """
    if path.name.endswith(".parquet"):
        return _read_parquet(path)
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise ValueError(f"{path.name}: unknown kind of file; known are {', '.join(SUFFIXES)}")
    try:
        data = gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()
        text = data.decode("utf-8-sig")  # a byte order mark, as Windows writes it, is no text
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise ValueError(f"{path.name}: cannot be read: {error}") from error
    rows: list[dict[str, Any]] = []
    bad: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines(): U+2028 may stand inside a JSON string
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # also a number of more digits, or more brackets, than Python reads
            bad.append(f"line {number}: not JSON: {error}")
            continue
        if not isinstance(row, dict):
            bad.append(f"line {number}: not an object")
        rows.append(row)
    if bad:
        more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        raise ValueError(f"{path.name}, {'; '.join(bad[:NAMED])}{more}")
    return rows


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as parquet  # what `datasets` reads with

    try:
        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise ValueError(f"{path.name}: cannot be read as parquet: {str(error).splitlines()[0]}") from error
    return rows


def file_names(config: DataConfig) -> tuple[str, ...]:
    """Names under which the set is looked for in a folder: the published one, the same unpacked, then `<name>.<suffix>`."""
    names = [config.file, config.file.removesuffix(".gz")] if config.file else []
    names += [config.name + suffix for suffix in SUFFIXES]
    return tuple(dict.fromkeys(names))


def find_local(config: DataConfig) -> Path | None:
    """The local file: `data.path` (a file or a folder), then the folder named by SPECBENCH_DATA.

    Returns None when neither is set, or the SPECBENCH_DATA folder lacks this set. Raises ConfigError when `data.path` holds
    nothing, or SPECBENCH_DATA is no folder: what the user named is never passed over in silence.
    """
    if config.path:
        path = Path(config.path).expanduser()
        if path.is_file():
            return path
        if not path.is_dir():
            raise ConfigError("data.path", config.path, "no such file or folder")
        found = _in_folder(path, config)
        if found is None:
            raise ConfigError("data.path", config.path, f"the folder holds none of {', '.join(file_names(config))}")
        return found
    folder = os.environ.get(DATA_VARIABLE)
    if not folder:
        return None
    if not Path(folder).is_dir():
        raise ConfigError(DATA_VARIABLE, folder, "no such folder; correct or unset the environment variable")
    return _in_folder(Path(folder), config)


def _in_folder(folder: Path, config: DataConfig) -> Path | None:
    """In the folder itself, then in the folders inside it, in the order of their names."""
    places = [folder, *sorted(place for place in folder.iterdir() if place.is_dir() and not place.name.startswith("."))]
    return next((place / name for place in places for name in file_names(config) if (place / name).is_file()), None)
