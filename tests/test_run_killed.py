"""kill -9 in mid-run, as a batch system or the kernel does it: what was finished is on disk, and says where it came from."""

from __future__ import annotations

import contextlib
import random
import resource
import signal
import time
from pathlib import Path

import pytest
import random_signals
from preloaded import Started, command
from run_folders import BUILTIN, finished_run

from specbench.measure import summary
from specbench.measure.records.store import RunStore, find_run_folders, read_rounds, read_run, read_samples

OPTIONS = [
    *BUILTIN,
    *("method=speculative", "data=humaneval", "data.source=standin", "data.limit=20", "decoding.max_new_tokens=16"),
    *("measure.repeats=20", "measure.warmup=1", "measure.power=off", "engine.threads=1", "device_lock=off"),
]
ENOUGH = 5  # finished samples before the kill


def test_a_run_killed_in_mid_sample_leaves_everything_that_was_finished(tmp_path: Path) -> None:
    started = Started(tmp_path / "said", command, [*OPTIONS, f"runs_dir={tmp_path / 'runs'}"], cwd=tmp_path)
    try:
        told: list[str] = []  # progress, one line a sample, printed when it is on disk
        until = time.monotonic() + 90
        while len(told) < ENOUGH and started.ended(0.005) is None and time.monotonic() < until:
            told = [line for line in started.err.splitlines() if line.startswith("[")]
        assert len(told) >= ENOUGH, f"the run ended before it could be killed: {started.err}"
    finally:
        started.kill()
    assert started.ended(30) == -signal.SIGKILL
    (folder,) = find_run_folders(tmp_path / "runs")
    run = read_run(folder)
    assert run["status"] == "started", "nobody was left to say more"
    assert run["provenance"]["argv"][1:-1] == OPTIONS and run["provenance"]["conditions_hash"] and run["config_hash"]
    assert len(run["pair"]["target"]["sha256"]) == 64 and run["data"]["sha256"] and run["warmup"]

    RunStore.open(folder).close()  # cuts a torn line, as a resumed run does
    samples, rounds = read_samples(folder), read_rounds(folder)
    assert len(samples) >= ENOUGH and set(rounds) == {record.key for record in samples}
    for line, record in zip(told, samples, strict=False):
        assert record.sample_id in line and record.arm in line and record.error is None
    rebuilt = summary.rebuild(folder)  # checks every identity of the records
    assert rebuilt["status"] == "started" and rebuilt["decode_tokens"] > 0
    assert rebuilt["lossless"]["verdict"] == "identical" and rebuilt["lossless"]["compared"] >= (ENOUGH - 1) // 2


def command_with_little_room(arguments: list[str]) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))
    command(arguments)


@pytest.mark.slow
def test_a_run_whose_disk_is_full_says_so_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    few = [option.replace("repeats=20", "repeats=3").replace("limit=20", "limit=6") for option in OPTIONS]
    full = Started(tmp_path / "full", command_with_little_room, [*few, f"runs_dir={runs}"], cwd=tmp_path)
    assert full.ended(300) == 1, full.err
    (folder,) = find_run_folders(runs)
    assert f"WriteError: {folder}/" in full.err.splitlines()[-1] and "cannot be written: File too large" in full.err
    assert read_run(folder)["status"] == "failed" and "cannot be written" in read_run(folder)["error"]
    told = [line for line in full.err.splitlines() if line.startswith("[")]
    with pytest.warns() if (folder / "samples.jsonl").read_bytes()[-1:] != b"\n" else contextlib.nullcontext():
        assert len(read_samples(folder)) == len(told) > 0
    again = Started(tmp_path / "again", command, [f"resume={folder}"], cwd=tmp_path)
    assert again.ended(300) == 0, again.err
    samples = read_samples(folder)
    assert len(samples) == 6 * 3 * 2 and set(read_rounds(folder)) == {record.key for record in samples}
    assert {record.key for record in samples if record.session == 0} == {record.key for record in samples[: len(told)]}


@pytest.mark.deep
def test_random_signals_leave_no_trace_and_no_other_ids() -> None:
    assert random_signals.main(["--trials", "20"]) == 0


def test_the_trials_would_see_other_ids_and_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    """The twin."""
    folder = finished_run(tmp_path / "runs")
    trials = random_signals.Trials(tmp_path, [], random.Random(0), expected=random_signals.ids_of(folder))
    assert trials.look(tmp_path / "runs") == []
    key = next(iter(trials.expected))
    trials.expected[key] = (*trials.expected[key], 7)
    assert trials.look(tmp_path / "runs") == [f"other ids for {key}"]
    (folder / "samples.jsonl").write_text("{}\n")
    (fault,) = trials.look(tmp_path / "runs")
    assert fault.startswith("the folder: StoreError")
