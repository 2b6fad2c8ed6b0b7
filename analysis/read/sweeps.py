"""What the sweep that made some runs says of itself: the record that stands beside its run folders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

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
        for item in newest.get("left_out", ()):
            jobs = f" ({item['num_jobs']} jobs)" if item["num_jobs"] > 1 else ""
            yield f"{item['what']}{jobs}", str(item["why"])
