"""What the sweep that made some runs says of itself: the record that stands beside its run folders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from specbench.analysis.read.shape import entry
from specbench.measure.records.jsonfile import read_json
from specbench.measure.records.store import StoreError

RECORDS = "sweep_*.json"


def left_out_of(folders: Iterable[Path]) -> Iterator[tuple[str, str]]:
    """Jobs that the sweeps of these runs left out, and why. Of a sweep's records the one that was started last counts."""
    for place in dict.fromkeys(folder.parent for folder in folders):
        records = []
        for path in place.glob(RECORDS):
            try:
                records.append(read_json(path))
            except StoreError:  # the runs themselves are there
                continue
        newest = max(records, key=lambda record: str(record.get("started_at")), default={})
        listed = newest.get("left_out")
        for item in listed if isinstance(listed, list) else ():
            what, why, count = (entry(item, name) for name in ("what", "why", "num_jobs"))
            yield f"{what} ({count} jobs)" if isinstance(count, int) and count > 1 else str(what), str(why)
