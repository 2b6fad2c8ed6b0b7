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

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = DataConfig(name="mt_bench", source="hub", hub_repo="someone/questions", hub_file="q.jsonl", hub_revision=COMMIT)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing cached, no local folder, and any unplanned use of the network fails the test."""
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    for name in hub.OFFLINE_VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def unplanned(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, file, **where: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unplanned)
    monkeypatch.setattr(hub, "probe", unplanned)


def snapshot(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """A file where the Hub's cache would put it."""
    path = folder / "snapshots" / COMMIT / "q.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
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
