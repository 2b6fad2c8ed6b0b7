"""One run folder into arrays, fast: ten million rounds must not pass through Python one by one.

Rounds are parsed by pyarrow (a dependency of `datasets`) straight into columns; a file that it refuses (a torn last line,
damage, what an older version wrote otherwise) goes to `store.read_rounds`, which knows what may be repaired and names what may
not.
"""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specbench.analysis.read.shape import RUN, SUMMARY, misfit
from specbench.measure import metrics, pairing
from specbench.measure.metrics import RoundTable, SampleKey
from specbench.measure.records import store
from specbench.measure.records.events import LATER_FIELDS, PARTS, ROUND_FIELDS, SampleRecord
from specbench.measure.summary import rebuild

TIMES = ("t_start", "t_end")
SHARES = (*(f"{part}_seconds" for part in PARTS), "target_share")  # of a round: durations, and what ran of the target
KINDS: dict[str, Any] = dict.fromkeys((name for name in ROUND_FIELDS if name != "phase"), np.int32)
KINDS |= dict.fromkeys(TIMES, np.float64) | dict.fromkeys(SHARES, np.float32) | {"stale": np.bool_}

Array = NDArray[Any]
Parsed = tuple[list[SampleKey], Array, dict[str, Array]]
"""Keys, number of rounds by key, flat columns."""


class UnusableRun(ValueError):
    """A run that no table may use; the message is the reason."""


@dataclass(frozen=True)
class RunFiles:
    """What one run folder says. `table` holds the rounds of finished samples in the order of `samples`."""

    folder: Path
    run: dict[str, Any]
    summary: dict[str, Any]
    samples: list[SampleRecord]
    table: RoundTable
    pairs: pairing.PairedTimes
    notes: tuple[str, ...]


def parse_ahead(folders: Sequence[Path], ahead: int = 4) -> Iterator[Future[Parsed]]:
    """The rounds of each folder, parsed by threads a few folders in advance: pyarrow works outside of Python's lock."""
    with ThreadPoolExecutor(max_workers=min(ahead, os.cpu_count() or 1)) as pool:
        waiting: deque[Future[Parsed]] = deque()
        for folder in folders:
            waiting.append(pool.submit(_by_arrow, folder / store.ROUNDS_FILE))
            if len(waiting) > ahead:
                yield waiting.popleft()
        yield from waiting


def read_folder(folder: Path, parsed: Future[Parsed], *, unfinished: bool = False) -> RunFiles:
    """Everything that the analysis uses of one run, every identity of the records checked. Raises UnusableRun with the reason.

    parsed: the folder's rounds, from `parse_ahead`. unfinished: accept runs whose status is not success, with what they
    finished.
    """
    notes: list[str] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", store.TornLineWarning)
            run = store.read_run(folder)
            if wrong := misfit(run, RUN):
                raise UnusableRun(f"{store.RUN_FILE}: {wrong}")
            if run.get("status") != "success" and not unfinished:
                raise UnusableRun(f"status {run.get('status')}: not finished")
            samples = store.read_samples(folder)
            if not any(record.decode_seconds is not None for record in samples):
                raise UnusableRun("no finished sample")
            table = _rounds_of(folder, samples, parsed)
            metrics.check_identities(samples, table)
            summary = _summary_of(folder, samples, table, notes)
        notes.extend(str(w.message) for w in caught if issubclass(w.category, store.TornLineWarning))
    except (store.StoreError, metrics.IdentityError, OSError) as error:
        raise UnusableRun(str(error)) from error
    return RunFiles(folder, run, summary, samples, table, pairing.pair_samples(samples), tuple(notes))


def _summary_of(folder: Path, samples: Sequence[SampleRecord], table: RoundTable, notes: list[str]) -> dict[str, Any]:
    """summary.json where it agrees with the records, else one rebuilt from them."""
    try:
        summary = store.read_summary(folder)
    except store.StoreError:
        notes.append("summary.json missing or broken: rebuilt from the records")
        return rebuild(folder)
    arm = "method" if any(record.arm == "method" for record in samples) else "baseline"
    own = [record for record in samples if record.arm == arm and record.decode_seconds is not None]
    found = {"decode_tokens": sum(r.num_emitted or 0 for r in own), "num_rounds": sum(r.num_rounds or 0 for r in own)}
    found["num_failed"] = len({record.sample_id for record in samples if record.finish_reason == "error"})
    wrong = [name for name, value in found.items() if summary.get(name) != value]
    if damage := misfit(summary, SUMMARY):
        raise UnusableRun(f"{store.SUMMARY_FILE}: {damage}; without the file it is rebuilt from the records")
    if not wrong:
        mine = table.arm(arm)
        for name, of_rounds in (
            ("emitted_per_round", metrics.emitted_per_round),
            ("accepted_per_round", metrics.accepted_per_round),
        ):
            mean, stated = of_rounds(mine)["pooled"], summary.get(name)
            if (mean is None) != (stated is None) or abs((mean or 0.0) - (stated or 0.0)) > 1e-9:
                wrong.append(name)
    if wrong:
        notes.append(f"summary.json disagreed with the records in {', '.join(wrong)}: rebuilt from them")
        return rebuild(folder)
    return summary


# ---------------------------------------------------------------------------------------------------- rounds
def _rounds_of(folder: Path, samples: Sequence[SampleRecord], parsed: Future[Parsed]) -> RoundTable:
    """The rounds of all finished samples, samples in the order of their lines."""
    finished = [record.key for record in samples if record.decode_seconds is not None]
    try:
        keys, lengths, columns = parsed.result()
    except Exception:  # whatever pyarrow dislikes, the store names precisely or repairs
        whole = RoundTable.of(store.read_rounds(folder))
        keys, lengths, columns = list(whole.keys), whole.counts(), narrow(whole.columns)
    position = {key: i for i, key in enumerate(keys)}
    order = np.array([position[key] for key in finished if key in position], dtype=np.int64)
    missing = [key for key in finished if key not in position]
    if missing:
        raise UnusableRun(f"{len(missing)} finished samples without rounds, the first {missing[0]}")
    sizes = lengths[order]
    if not np.array_equal(order, np.arange(len(keys))):  # rounds of unfinished samples, or lines in another order
        starts = np.cumsum(lengths) - lengths
        offset = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        rows = np.repeat(starts[order], sizes) + offset
        columns = {name: values[rows] for name, values in columns.items()}
    return RoundTable(tuple(finished), np.repeat(np.arange(len(finished)), sizes), columns)


def narrow(columns: Mapping[str, Array]) -> dict[str, Array]:
    """Counts as int32, durations as float32 (a billionth of a second in a hundred), stamps as float64."""
    return {name: values.astype(KINDS[name]) if name in KINDS else values for name, values in columns.items()}


def _by_arrow(path: Path) -> Parsed:
    """Keys, number of rounds by key, and flat columns. Raises on anything unusual."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import json as pa_json

    if not path.is_file() or path.stat().st_size == 0:
        return [], np.zeros(0, np.int64), narrow(RoundTable.of({}).columns)
    kinds = {name: pa.from_numpy_dtype(kind) for name, kind in KINDS.items()} | {"phase": pa.string()}
    key_types = {"sample_id": pa.string(), "turn": pa.int64(), "repeat": pa.int64(), "arm": pa.string()}
    with path.open("rb") as file:
        is_version_1 = b'"mode":' in file.readline()  # what a round's phase was called there
    stored = {name: "mode" if name == "phase" and is_version_1 else name for name in ROUND_FIELDS}
    schema = pa.schema(
        [pa.field(name, kind) for name, kind in key_types.items()]
        + [pa.field(stored[name], pa.list_(kinds[name])) for name in ROUND_FIELDS]
    )
    parse = pa_json.ParseOptions(explicit_schema=schema, newlines_in_values=False, unexpected_field_behavior="ignore")
    read = pa_json.ReadOptions(use_threads=True, block_size=path.stat().st_size + 1)  # no line may be longer than a block
    with path.open("rb") as file:
        file.seek(-1, 2)
        if file.read(1) != b"\n":
            raise ValueError("no end of line at the end")
    batch = pa_json.read_json(path, read_options=read, parse_options=parse).combine_chunks()
    keys: list[SampleKey] = list(zip(*(batch[name].to_pylist() for name in key_types), strict=True))
    lengths = np.asarray(pc.list_value_length(batch["t_start"]))
    columns: dict[str, Array] = {}
    for name in ROUND_FIELDS:
        column = batch[stored[name]]
        if name in LATER_FIELDS and column.null_count == len(column):  # format version 1
            columns[name] = np.full(int(lengths.sum()), LATER_FIELDS[name], kinds[name].to_pandas_dtype())
            continue
        own = np.asarray(pc.list_value_length(column))
        values = pc.list_flatten(column).combine_chunks()
        if column.null_count or values.null_count or not np.array_equal(own, lengths):
            raise ValueError(f"{name}: missing values or arrays of unequal length")
        columns[name] = _strings(values) if name == "phase" else values.to_numpy(zero_copy_only=False)
    if len(set(keys)) != len(keys):
        raise ValueError("a key occurs twice")
    if (columns["num_accepted"] > columns["num_emitted"]).any():
        raise ValueError("accepted behind the output's end, as older folders say")
    return keys, lengths.astype(np.int64), columns


def _strings(values: Any) -> Array:
    """An arrow string array as a numpy object array whose equal entries are one object."""
    encoded = values.dictionary_encode()
    words = np.array(encoded.dictionary.to_pylist() or [""], dtype=object)
    return words[encoded.indices.to_numpy(zero_copy_only=False)] if len(values) else np.zeros(0, dtype=object)
