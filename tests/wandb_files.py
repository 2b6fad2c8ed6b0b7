"""Reads what Weights & Biases wrote offline: the records of a `run-<id>.wandb` file, without its service and its client.

The format is LevelDB's log: a header of 7 bytes, then blocks of 32 KiB holding pieces of records, each with checksum, length
and kind (whole, first, middle, last). A record is a protocol buffer.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK = 32768
_HEADER = 7
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def pieces(path: Path) -> Iterator[bytes]:
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    position, whole = _HEADER, b""
    while position + _HEADER <= len(data):
        left = _BLOCK - position % _BLOCK
        if left < _HEADER:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + _HEADER])
        position += _HEADER
        piece = data[position : position + length]
        position += length
        assert kind in (_WHOLE, _FIRST, _MIDDLE, _LAST), kind
        whole = piece if kind in (_WHOLE, _FIRST) else whole + piece
        if kind in (_WHOLE, _LAST):
            yield whole


class OfflineRun:
    """config, rows (one dictionary per `log`), summary, artifacts (name to its files), group, tags, exit_code."""

    def __init__(self, path: Path):
        from wandb.proto import wandb_internal_pb2

        self.config: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.artifacts: dict[str, list[str]] = {}
        self.exit_code: int | None = None
        for data in pieces(path):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
                self.id, self.project, self.group = record.run.run_id, record.run.project, record.run.run_group
                self.tags = list(record.run.tags)
            elif kind == "history":
                self.rows.append({_key(item): json.loads(item.value_json) for item in record.history.item})
            elif kind == "summary":
                self.summary |= {_key(item): json.loads(item.value_json) for item in record.summary.update}
            elif kind == "artifact":
                named = [entry.path for entry in record.artifact.manifest.contents]
                self.artifacts[f"{record.artifact.type}/{record.artifact.name}"] = named
            elif kind == "exit":
                self.exit_code = record.exit.exit_code

    @property
    def prompts(self) -> list[dict[str, Any]]:
        """The rows of prompts, without W&B's own entries."""
        found = [row for row in self.rows if "prompt/index" in row]
        return [{key.removeprefix("prompt/"): value for key, value in row.items() if key[0] != "_"} for row in found]


def _key(item: Any) -> str:
    return str(item.key or ".".join(item.nested_key))


def offline_runs(folder: Path) -> list[OfflineRun]:
    return [OfflineRun(path) for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))]
