"""Runs on disks that are full, go away or may not be written: one clear line, and what was finished is kept.

The small disk is a file system in memory, which only root may mount: elsewhere these tests are skipped, and the limits on a
file's size in test_run_killed.py say some of it.
"""

from __future__ import annotations

import contextlib
import importlib
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from test_run import AR, SD, configured, only_folder
from test_run import models_loaded_once as models_loaded_once

from specbench.measure.records.store import RunStore, TornLineWarning, WriteError, read_rounds, read_run, read_samples
from specbench.run.run import run


def mount(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if shutil.which("mount") is None or not mount("-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)):
        pytest.skip("nothing can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_it_goes_on_when_there_is_room(disk: Path) -> None:
    config = configured(disk, AR, data__limit=4, measure__repeats=30, measure__warmup=0, decoding__max_new_tokens=4)
    with pytest.raises(WriteError, match=r"cannot be written: No space left on device"):
        run(config)
    folder = only_folder(disk)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TornLineWarning)
        before = read_samples(folder)
    assert 5 < len(before) < 4 * 30 and not any(record.error for record in before)
    assert read_run(folder)["status"] in ("failed", "started")  # as far as there was room to say so
    again = replace(config, resume=str(folder))
    with pytest.raises(WriteError, match="No space left on device"):
        run(again)
    assert len(read_samples(folder)) >= len(before) - 1, "going on in vain costs nothing that was finished"
    assert mount("-o", "remount,size=8m", str(disk))
    assert run(again)["status"] == "success"
    after = {record.key: record.output_ids for record in read_samples(folder)}
    assert len(after) == 4 * 30 and set(read_rounds(folder)) == set(after)
    assert all(after[record.key] == record.output_ids for record in before)
    assert not list(folder.glob(".*")), "something is left of what found no room"


def test_a_disk_that_may_not_be_written_is_said_at_once(disk: Path) -> None:
    """A new run, one that is to go on, and, the twin, one that is finished: nobody needs to write for it."""
    finished = configured(disk, AR, data__limit=1, measure__warmup=0, decoding__max_new_tokens=4)
    assert run(finished)["status"] == "success"
    done = only_folder(disk)
    cut = disk / "cut"
    shutil.copytree(done, cut)
    RunStore.open(cut).set_status("interrupted")
    before = {path: path.read_bytes() for path in disk.rglob("*") if path.is_file()}
    assert mount("-o", "remount,ro", str(disk))
    with pytest.raises(WriteError, match=r"runs/.*: cannot be written: Read-only file system"):
        run(replace(finished))
    with pytest.raises(WriteError, match=r"samples\.jsonl: cannot be written: Read-only file system"):
        run(replace(finished, resume=str(cut)))
    assert run(replace(finished, resume=str(done)))["status"] == "success"
    assert {path: path.read_bytes() for path in disk.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("what", ["the folder", pytest.param("all runs", marks=pytest.mark.slow)])
def test_a_folder_that_is_removed_during_the_run_ends_it(tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real, count = RunStore.append_sample, [0]

    def append_sample(self: RunStore, record: object) -> None:
        real(self, record)  # type: ignore[arg-type]
        count[0] += 1
        if count[0] == 2:
            shutil.rmtree(self.folder if what == "the folder" else tmp_path / "runs")

    monkeypatch.setattr(RunStore, "append_sample", append_sample)
    config = configured(tmp_path, SD, data__limit=3, measure__warmup=0, decoding__max_new_tokens=4)
    with pytest.raises(WriteError, match=rf"{tmp_path}/runs/.*jsonl: cannot be written: No such file or directory"):
        run(config)
    assert count[0] == 2 and not list((tmp_path).rglob("run.json"))
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(tmp_path / "runs")
    assert run(config)["status"] == "success"  # the twin: another run finds nothing in its way


DOORS = {  # by what each calls when its options are understood, and words that it understands
    "analysis": ("specbench.analysis", "compare", ["runs"]),
    "sim": ("specbench.sim.__main__", "configuration", ["devices=h100"]),
    "check": ("specbench.check.__main__", "check_all", ["method=speculative"]),
    "qualify": ("specbench.qualify.__main__", "every", []),
}


@pytest.mark.parametrize("door", DOORS)
def test_what_cannot_be_written_and_an_interrupt_are_one_line_at_every_door(
    door: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where, name, words = DOORS[door]
    errors: list[tuple[BaseException, int, str]] = [
        (OSError(28, "No space left on device", "some/file"), 1, "No space left on device: 'some/file'"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ]
    for error, status, said in errors:

        def fails(*_: object, error: BaseException = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(f"{where}.{name}", fails)
        assert importlib.import_module(f"specbench.{door}.__main__").main(words) == status
        told = capsys.readouterr()
        assert said in told.err and len(told.err.splitlines()) == 1 and not told.out
