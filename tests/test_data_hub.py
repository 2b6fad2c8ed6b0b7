"""The Hub as a source: one short probe, offline at once, and what arrives is verified. No test leaves this machine."""

from __future__ import annotations

import dataclasses
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from specbench import data
from specbench.config.options import ConfigError
from specbench.config.schema import DataConfig
from specbench.data import hub
from specbench.data.files import DATA_VARIABLE, sha256_of

huggingface_hub = pytest.importorskip("huggingface_hub")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = DataConfig(name="mt_bench", source="hub", hub_repo="someone/questions", hub_file="q.jsonl", hub_revision=COMMIT)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing cached, no local folder, and any unplanned use of the network fails the test."""
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    for name in hub.OFFLINE_VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def unplanned(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, file, **where: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unplanned)
    monkeypatch.setattr(hub, "probe", unplanned)
    # Hugging Face's own cache of prepared sets, which the real library of these tests fills.
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "prepared")


def snapshot(folder: Path, rows: list[dict[str, Any]], name: str = "q.jsonl") -> Path:
    """A file where the Hub's cache would put it: a link in a commit's folder, below a hidden one."""
    blob = folder / ".cache" / "datasets--someone--questions" / "blobs" / "0123"
    path = blob.parents[1] / "snapshots" / COMMIT / name
    for place in (blob, path):
        place.parent.mkdir(parents=True)
    if name.endswith(".parquet"):
        parquet.write_table(pyarrow.Table.from_pylist(rows), blob)
    else:
        blob.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path.symlink_to(blob)
    return path


ROWS = [{"question_id": 1, "category": "a", "turns": ["first", "second"]}]


@pytest.mark.parametrize("variable", hub.OFFLINE_VARIABLES)
def test_offline_is_respected_at_once(
    variable: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(ConfigError, match=f"{variable} is set"):
        data.load(CONFIG)
    dataset = data.load(dataclasses.replace(CONFIG, source="auto"))
    assert dataset.source == "standin" and variable in dataset.warnings[0]
    assert capsys.readouterr().err == ""


def test_without_the_variable_the_probe_is_asked_once_and_announced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, float]] = []

    def refuse(url: str, seconds: float) -> str:
        asked.append((url, seconds))
        return "refused"

    monkeypatch.setattr(hub, "probe", refuse)
    dataset = data.load(dataclasses.replace(CONFIG, source="auto"))
    assert dataset.source == "standin" and "refused" in dataset.warnings[0]
    assert len(asked) == 1 and asked[0][1] == 3.0 and "someone/questions" in asked[0][0]
    assert capsys.readouterr().err.count("\n") == 1


def test_download_is_verified_and_carries_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = snapshot(tmp_path, ROWS)
    wanted: list[dict[str, Any]] = []
    monkeypatch.setattr(hub, "probe", lambda url, seconds: None)

    def download(repo: str, file: str, **where: Any) -> str:
        wanted.append(where)
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(ConfigError, match="content differs from the published set"):
        data.load(CONFIG)
    assert (wanted[0]["revision"], wanted[0]["repo_type"]) == (COMMIT, "dataset")
    assert data.load(dataclasses.replace(CONFIG, source="auto")).source == "standin"
    dataset = data.load(dataclasses.replace(CONFIG, name="mine", hub_sha256=sha256_of(path)))
    assert (dataset.name, dataset.source, dataset.revision, len(dataset.samples)) == ("mine", "hub", COMMIT, 1)


def test_a_cached_file_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = snapshot(tmp_path, ROWS)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, file, **where: str(path))
    assert data.load(dataclasses.replace(CONFIG, name="mine", hub_sha256=sha256_of(path))).revision == COMMIT


CARD = """---
configs:
- {config_name: questions, data_files: [{split: test, path: raw/test-*}]}
dataset_info: {config_name: questions, splits: [{name: test, num_bytes: 7, num_examples: 7}]}
---
"""


@pytest.mark.parametrize("name", ["raw/test-00000.parquet", "q.jsonl"])
def test_a_set_is_read_by_hugging_faces_library(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever container and folder of its repository, beside a card that promises other splits; the sum is the file's."""
    import datasets

    asked: list[tuple[str, dict[str, Any]]] = []
    real = datasets.load_dataset

    def load_dataset(where: str, **options: Any) -> Any:
        asked.append((where, options))
        return real(where, **options)

    rows = [*ROWS, {"question_id": 2, "category": "b", "turns": ["2020-01-01", "\u2028"]}]
    path = snapshot(tmp_path, rows, name)
    root = path.parents[name.count("/")]
    (root / "README.md").write_text(CARD)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, file, **where: str(path))
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    dataset = data.load(dataclasses.replace(CONFIG, name="mine", hub_file=name))
    assert [(where, options["data_files"]) for where, options in asked] == [(str(root), name)]
    assert [[turn.user for turn in sample.turns] for sample in dataset.samples] == [row["turns"] for row in rows]
    assert (dataset.source, dataset.sha256, dataset.revision) == ("hub", sha256_of(path), COMMIT)
    assert f"mine declares no checksum; {path.name} has sha256 {dataset.sha256}" in dataset.warnings


def test_a_file_that_holds_no_rows_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = snapshot(tmp_path, ROWS)
    path.write_text('{"question_id": 1}\n{"question_id":')
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, file, **where: str(path))
    with pytest.raises(
        ConfigError, match=r"^data\.source='hub': q\.jsonl cannot be read: ArrowInvalid: JSON parse error[^\n]*$"
    ):
        data.load(CONFIG)
    dataset = data.load(dataclasses.replace(CONFIG, source="auto"))
    assert dataset.source == "standin" and "cannot be read" in dataset.warnings[0]


def test_a_failed_download_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **where: Any) -> str:
        raise OSError("404 Not Found\nand a page of help")

    monkeypatch.setattr(hub, "probe", lambda url, seconds: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(ConfigError, match=r"OSError: 404 Not Found$"):
        data.load(CONFIG)


@pytest.fixture
def real_probe(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(hub, "probe", PROBE)
    monkeypatch.setenv("no_proxy", "*")  # a proxy of this machine must not stand in between
    return PROBE


PROBE = hub.probe


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A server that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


class _Answer(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(int(self.path.strip("/")))
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_probe_tells_answers_from_silence(real_probe: Any, silent_port: int) -> None:
    assert real_probe(f"http://127.0.0.1:{silent_port}/", 0.2) is not None
    with HTTPServer(("127.0.0.1", 0), _Answer) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        base = f"http://127.0.0.1:{server.server_port}"
        assert real_probe(f"{base}/200", 5.0) is None
        assert real_probe(f"{base}/401", 5.0) is None, "a refusal is an answer; the download says more"
        assert real_probe(f"{base}/503", 5.0) == "HTTP status 503"
        server.shutdown()
        thread.join()
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert "refused" in str(real_probe(f"http://127.0.0.1:{port}/", 5.0)).lower()
