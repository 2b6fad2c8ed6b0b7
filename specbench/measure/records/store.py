"""The run folder: the only room that knows its file names.

    run.json       status, resolved configuration and hash, provenance (rewritten whole, atomically)
    samples.jsonl  one line per sample, turn, repeat and arm
    rounds.jsonl   one line per sample, turn, repeat and arm, holding arrays of equal length (columnar)
    power.jsonl    power trace rows, when measured
    summary.json   derived; can be rebuilt from the files above
    trace.json     optional timeline

Lines are appended and flushed as they happen. The sample's line is its commit mark: it is written after its rounds and is
followed by fsync, so a killed run loses at most the sample in flight. Nothing here is pickled and nothing is read but JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from specbench.measure.records.asked import config_hash as config_hash
from specbench.measure.records.events import (
    FORMAT_VERSION,
    LATER_FIELDS,
    ROUND_FIELDS,
    SAMPLE_TYPES,
    Round,
    SampleKey,
    SampleRecord,
    cut_accepted,
    is_column,
)
from specbench.measure.records.jsonfile import StoreError as StoreError
from specbench.measure.records.jsonfile import TornLineWarning as TornLineWarning
from specbench.measure.records.jsonfile import WriteError as WriteError
from specbench.measure.records.jsonfile import cut_torn_line, dumps, read_json, read_lines, write_atomically
from specbench.measure.records.masking import mask_mapping, mask_text

RUN_FILE = "run.json"
SAMPLES_FILE = "samples.jsonl"
ROUNDS_FILE = "rounds.jsonl"
POWER_FILE = "power.jsonl"
SUMMARY_FILE = "summary.json"
TRACE_FILE = "trace.json"

STATUSES = ("started", "success", "failed", "interrupted")
KEY_FIELDS = ("sample_id", "turn", "repeat", "arm")

RoundColumns = dict[str, list[Any]]  # one list per field of `Round`, all of the same length


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", name).strip("-.") or "unnamed"


def round_columns(rounds: Sequence[Round]) -> RoundColumns:
    """Rounds as lists by field; seconds to the nanosecond."""
    columns: RoundColumns = {name: [getattr(r, name) for r in rounds] for name in ROUND_FIELDS}
    for values in columns.values():
        if values and isinstance(values[0], float):
            values[:] = [round(float(v), 9) for v in values]
    return columns


def rounds_from_columns(columns: Mapping[str, Sequence[Any]]) -> list[Round]:
    """The inverse of `round_columns`."""
    length = len(columns["t_start"])
    return [Round(**{name: columns[name][i] for name in ROUND_FIELDS if name in columns}) for i in range(length)]


# ---------------------------------------------------------------------------------------------------- writing
class RunStore(contextlib.AbstractContextManager["RunStore"]):
    """One run folder, open for writing."""

    def __init__(self, folder: Path, run: dict[str, Any]):
        self.folder = folder
        self._run = run
        self._files: dict[str, IO[str]] = {}

    @classmethod
    def create(
        cls, runs_dir: str | Path, method: str, data: str, config: Mapping[str, Any], now: datetime | None = None
    ) -> RunStore:
        """A new folder runs/<date>/<time>_<method>_<data>_<8 hex of the config's hash>, with run.json already in it.

        Two runs that start in the same second get different folders (-2, -3, ...). `now` is for tests. Raises WriteError.
        """
        stamp = now or datetime.now()
        name = f"{stamp:%H-%M-%S}_{_slug(method)}_{_slug(data)}_{config_hash(config)[:8]}"
        day = Path(runs_dir) / f"{stamp:%Y-%m-%d}"
        for attempt in range(1, 10_000):
            folder = day / (name if attempt == 1 else f"{name}-{attempt}")
            try:
                day.mkdir(parents=True, exist_ok=True)
                folder.mkdir()
            except FileExistsError as error:
                if not day.is_dir():
                    raise WriteError(day, error) from error
                continue
            except OSError as error:
                raise WriteError(folder, error) from error
            return cls.begin(folder, method, data, config)
        raise StoreError(f"{day / name}: no free folder name left")

    @classmethod
    def begin(cls, folder: Path, method: str, data: str, config: Mapping[str, Any]) -> RunStore:
        """The first run.json of an empty folder whose name is chosen already."""
        store = cls(folder, {})
        store.write_run(
            {
                "format_version": FORMAT_VERSION,
                "status": "started",
                "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
                "method": method,
                "data_name": data,
                "config": dict(config),
                "config_hash": config_hash(config),
            }
        )
        return store

    @classmethod
    def open(cls, folder: str | Path) -> RunStore:
        """An existing folder, to be continued: a torn last line is cut off, rounds without a sample line are removed."""
        path = Path(folder)
        store = cls(path, read_run(path))
        for left in path.glob(".*.tmp"):  # of a file that was being replaced when its writer was killed
            left.unlink(missing_ok=True)
        for name in (SAMPLES_FILE, ROUNDS_FILE, POWER_FILE):
            cut_torn_line(path / name)
        finished = {record.key for record in read_samples(path)}
        lines = read_lines(path / ROUNDS_FILE)
        kept = [line for line in lines if _key_of(line) in finished]
        if len(kept) != len(lines):
            write_atomically(path / ROUNDS_FILE, "".join(dumps(line) + "\n" for line in kept))
        return store

    @property
    def run(self) -> dict[str, Any]:
        """What run.json holds now."""
        return self._run

    def write_run(self, facts: Mapping[str, Any]) -> None:
        """Merge `facts` into run.json (top-level keys replace) and rewrite it; values that look like secrets are masked."""
        merged = {**self._run, **mask_mapping(facts)}
        if merged.get("status") not in STATUSES:
            raise ValueError(f"status={merged.get('status')!r}: one of {', '.join(STATUSES)}")
        write_atomically(self.folder / RUN_FILE, dumps(merged, indent=1) + "\n")
        self._run = merged

    def set_status(self, status: str, **extra: Any) -> None:
        """started, success, failed or interrupted; the last three also note the time of the end."""
        ended = {} if status == "started" else {"ended_at": datetime.now(UTC).isoformat(timespec="seconds")}
        self.write_run({"status": status, **ended, **extra})

    def append_sample(self, record: SampleRecord) -> None:
        """The sample's line, then fsync. Write the sample's rounds before. Raises WriteError, as the other writers do."""
        line = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
        line["error"] = mask_text(record.error) if record.error else record.error
        rounds = self._files.get(ROUNDS_FILE)
        if rounds is not None:
            self._sync(ROUNDS_FILE, rounds)
        self._sync(SAMPLES_FILE, self._append(SAMPLES_FILE, [line]))

    def append_rounds(self, sample_id: str, turn: int, repeat: int, arm: str, rounds: Sequence[Round]) -> None:
        """One line with all rounds of a sample, turn, repeat and arm; call it when the clock has stopped."""
        key = dict(zip(KEY_FIELDS, (sample_id, turn, repeat, arm), strict=True))
        self._append(ROUNDS_FILE, [{**key, **round_columns(rounds)}])

    def append(self, record: SampleRecord, rounds: Sequence[Round]) -> None:
        """A finished sample: its rounds, then the sample itself."""
        self.append_rounds(*record.key, rounds)
        self.append_sample(record)

    def append_power(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows of the power trace: at least time_seconds, device, watts (see `energy.PowerTrace`)."""
        self._append(POWER_FILE, rows)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        write_atomically(self.folder / SUMMARY_FILE, dumps(mask_mapping(summary), indent=1) + "\n")

    def write_trace(self, trace: Mapping[str, Any]) -> None:
        write_atomically(self.folder / TRACE_FILE, dumps(trace, separators=(",", ":")) + "\n")

    def close(self) -> None:
        for file in self._files.values():
            with contextlib.suppress(OSError):  # the rest of a line that could not be written: that was said
                file.close()
        self._files.clear()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> IO[str]:
        text = "".join(dumps(row, separators=(",", ":")) + "\n" for row in rows)  # first: a row that fails writes nothing
        file = self._files.get(name)
        try:
            if file is None:
                file = self._files[name] = (self.folder / name).open("a", encoding="utf-8")
            file.write(text)
            file.flush()
        except OSError as error:
            raise WriteError(self.folder / name, error) from error
        return file

    def _sync(self, name: str, file: IO[str]) -> None:
        """What was appended is on the disk, and the file is still where it was: one that was removed takes lines for ever."""
        path = self.folder / name
        try:
            os.fsync(file.fileno())
            if not os.path.samestat(os.stat(path), os.fstat(file.fileno())):
                raise OSError("another file stands there now")
        except OSError as error:
            raise WriteError(path, error) from error


# ---------------------------------------------------------------------------------------------------- reading
def _key_of(row: Mapping[str, Any]) -> SampleKey:
    return (row["sample_id"], row["turn"], row["repeat"], row["arm"])


def is_run_folder(folder: str | Path) -> bool:
    return (Path(folder) / RUN_FILE).is_file()


def find_run_folders(root: str | Path) -> list[Path]:
    """All run folders at or below `root`, sorted by path (which sorts by date and time)."""
    return sorted(path.parent for path in Path(root).rglob(RUN_FILE) if path.is_file())


def read_run(folder: str | Path) -> dict[str, Any]:
    """run.json. Raises StoreError if it is missing, broken or of a newer format."""
    run = read_json(Path(folder) / RUN_FILE)
    version = run.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise StoreError(f"{Path(folder) / RUN_FILE}: format_version {version!r}, this version reads up to {FORMAT_VERSION}")
    return run


def read_samples(folder: str | Path) -> list[SampleRecord]:
    """All sample lines, in the order in which they were written. A key that occurs twice is an error."""
    path = Path(folder) / SAMPLES_FILE
    records: list[SampleRecord] = []
    seen: dict[SampleKey, int] = {}
    for number, row in enumerate(read_lines(path), start=1):
        try:
            for name in ("prompt_ids", "output_ids"):
                row[name] = tuple(row[name])
            row["spans"] = tuple((start, end, name) for start, end, name in row.get("spans", ()))
            record = SampleRecord(**row)
            for name, kinds in SAMPLE_TYPES.items():
                if type(getattr(record, name)) not in kinds:
                    raise TypeError(f"{name} is {getattr(record, name)!r}")
        except (TypeError, KeyError, ValueError) as error:
            raise StoreError(f"{path}:{number}: not a sample record: {error}") from error
        if record.key in seen:
            raise StoreError(f"{path}:{number}: {record.key} was already on line {seen[record.key]}")
        seen[record.key] = number
        records.append(record)
    return records


def read_rounds(folder: str | Path) -> dict[SampleKey, RoundColumns]:
    """Rounds by sample key as columns (`rounds_from_columns` makes `Round`s of them). Arrays of unequal length are an error."""
    path = Path(folder) / ROUNDS_FILE
    table: dict[SampleKey, RoundColumns] = {}
    for number, row in enumerate(read_lines(path), start=1):
        if "mode" in row:  # what format version 1 called a round's phase
            row["phase"] = row.pop("mode")
        for name, value in LATER_FIELDS.items():  # format version 1
            if name not in row and "t_start" in row:
                row[name] = [value] * len(row["t_start"])
        missing = [name for name in (*KEY_FIELDS, *ROUND_FIELDS) if name not in row]
        if missing:
            raise StoreError(f"{path}:{number}: without {', '.join(missing)}")
        columns: RoundColumns = {name: row[name] for name in ROUND_FIELDS}
        if wrong := [name for name, values in columns.items() if not is_column(name, values)]:
            raise StoreError(f"{path}:{number}: {', '.join(wrong)}: no list of what a round has there")
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) != 1:
            raise StoreError(f"{path}:{number}: arrays of unequal length {lengths}")
        if _key_of(row) in table:
            raise StoreError(f"{path}:{number}: {_key_of(row)} occurs twice")
        cut_accepted(columns)
        table[_key_of(row)] = columns
    return table


def read_power(folder: str | Path) -> list[dict[str, Any]]:
    """Rows of the power trace; empty when none was taken."""
    return read_lines(Path(folder) / POWER_FILE)


def read_summary(folder: str | Path) -> dict[str, Any]:
    return read_json(Path(folder) / SUMMARY_FILE)
