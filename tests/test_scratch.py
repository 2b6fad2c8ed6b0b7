"""Scratch folders: nothing of them stays, whatever ends their maker, and nobody's are taken away while they are in use."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from specbench.measure.records.scratch import YOUNG_SECONDS, scratch


def make_and_wait(parent: Path) -> None:
    with scratch("x", parent) as folder:
        (folder / "weights").write_bytes(bytes(1000))
        (parent / "ready").touch()
        time.sleep(600)


def age(folder: Path) -> None:
    then = time.time() - 2 * YOUNG_SECONDS
    os.utime(folder, (then, then))


def test_what_a_killed_process_left_goes_when_the_next_one_comes(tmp_path: Path) -> None:
    maker = multiprocessing.get_context("fork").Process(target=make_and_wait, args=(tmp_path,))
    maker.start()
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    (left,) = tmp_path.glob("specbench-x-*")
    age(left)
    with scratch("x", tmp_path):
        assert left.is_dir(), "its maker lives"
    assert maker.pid is not None
    os.kill(maker.pid, signal.SIGKILL)
    maker.join()
    assert (left / "weights").is_file()
    with scratch("x", tmp_path) as folder:
        assert not left.exists() and folder.is_dir()
    assert not list(tmp_path.glob("specbench-*"))


def test_what_may_be_somebodys_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Young ones, other names, files, and links, which would lead elsewhere."""
    elsewhere = tmp_path / "elsewhere"
    for folder in ("specbench-x-young", "specbench-y-old", "specbench-x-old", "elsewhere"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file").touch()
    (tmp_path / "specbench-x-link").symlink_to(elsewhere)
    (tmp_path / "specbench-x-file").touch()
    for name in ("specbench-y-old", "specbench-x-old", "elsewhere", "specbench-x-file"):
        age(tmp_path / name)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getuid", lambda: os.geteuid() + 1)
        with scratch("x", tmp_path):
            assert (tmp_path / "specbench-x-old").is_dir(), "another user's"
    with pytest.raises(RuntimeError), scratch("x", tmp_path) as made:
        raise RuntimeError("in the middle")
    assert not made.exists() and not (tmp_path / "specbench-x-old").exists(), "the twin: nobody's"
    assert (elsewhere / "file").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {
        *("specbench-x-young", "specbench-y-old", "specbench-x-link", "specbench-x-file", "elsewhere"),
    }
