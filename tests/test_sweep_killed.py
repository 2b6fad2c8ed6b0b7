"""Sweeps that are killed: nothing survives them, and started again they end as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sweeping import command_line, environment, execute

from specbench.measure.records.store import find_run_folders, read_run, read_samples

SURVIVES_SECONDS = 10.0
LONG = pytest.mark.skipif(not os.environ.get("SPECBENCH_LONG_TESTS"), reason="many minutes: SPECBENCH_LONG_TESTS=1 runs it")


def processes(runs: Path) -> list[int]:
    """Every living process that was started from the command on these runs, by its environment."""
    mark = f"SPECBENCH_LOCKS={environment(runs)['SPECBENCH_LOCKS']}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:  # gone, or not ours
            continue
    return found


def until(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def start(runs: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """In a process group of its own, and without a terminal."""
    log = (runs.parent / "log").open("ab")
    line = command_line(runs, *arguments)
    return subprocess.Popen(line, env=environment(runs), stdout=log, stderr=log, start_new_session=True)


def all_gone(runs: Path) -> bool:
    return until(lambda: not processes(runs), SURVIVES_SECONDS)


def num_lines(runs: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in runs.rglob("samples.jsonl"))


def outputs(runs: Path) -> dict[tuple[str, str, int, int, str], tuple[int, ...]]:
    """What was decoded, by run and sample. (Reading refuses a sample that is there twice.)"""
    found = {}
    for folder in find_run_folders(runs):
        assert read_run(folder)["status"] == "success"
        for record in read_samples(folder):
            assert record.error is None
            found[(folder.name, *record.key)] = record.output_ids
    return found


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_sweep_whose_own_process_is_killed(tmp_path: Path, how: signal.Signals) -> None:
    """The sweep's process alone: its job and the job's worker learn of it by themselves, or are told."""
    runs = tmp_path / "runs"
    sweep = ("-m", "launcher=isolated", "method=amusd", "decoding.seed=0,1", "allow_mixed=true")
    first = start(runs, *sweep)
    try:
        assert until(lambda: num_lines(runs) >= 1 or first.poll() is not None, 300)
        assert first.poll() is None, (tmp_path / "log").read_text()
        assert len(processes(runs)) >= 3, "the sweep, its job, the job's worker"
        first.send_signal(how)
        assert first.wait(30) == (143 if how == signal.SIGTERM else -how), (tmp_path / "log").read_text()
        assert all_gone(runs), "a process outlived the sweep"
        (folder,) = find_run_folders(runs)
        (record,) = runs.rglob("sweep_*.json")
        told = [read_run(folder)["status"], json.loads(record.read_text())["status"]]
        assert told == (["interrupted"] * 2 if how == signal.SIGTERM else ["started"] * 2)
    finally:
        for pid in processes(runs):
            os.kill(pid, signal.SIGKILL)
    before = {path: path.read_bytes() for path in runs.rglob("samples.jsonl")}
    done = execute(runs, *sweep)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["status"] == "success"
    assert len(outputs(runs)) == 2 * 2 * 2, "two jobs, two samples, two arms"
    for path, text in before.items():
        assert path.read_bytes().startswith(text[: text.rfind(b"\n") + 1]), "what was written stays"
    again = [read_run(folder).get("sessions", []) for folder in find_run_folders(runs)]
    assert sorted(map(len, again)) == [0, 1], "one went on, the other was not started before the kill"


@pytest.mark.slow
@LONG
def test_a_sweep_killed_three_times_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    sweep = ("-m", "launcher=isolated", "method=speculative,amusd,pearl", "data=humaneval,mt_bench", "allow_mixed=true")
    undisturbed = tmp_path / "a" / "runs"
    undisturbed.parent.mkdir()
    started = time.monotonic()
    done = execute(undisturbed, *sweep)
    duration = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    expected = outputs(undisturbed)
    assert len({name for name, *_ in expected}) == 6

    runs = tmp_path / "b" / "runs"
    runs.parent.mkdir()
    seed = int(os.environ.get("SPECBENCH_KILL_SEED", time.time()))
    print(f"SPECBENCH_KILL_SEED={seed}")
    chance = random.Random(seed)
    for _ in range(3):
        process = start(runs, *sweep)
        with pytest.raises(subprocess.TimeoutExpired):  # together less than the whole sweep takes: it cannot end before
            process.wait(chance.uniform(0.03, 0.3) * duration)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        print(f"killed with {num_lines(runs)} records written")
        assert all_gone(runs), "a process outlived the kill"
    done = execute(runs, *sweep)
    assert done.returncode == 0, done.stderr
    found = outputs(runs)
    assert set(found) == set(expected)
    assert found == expected


def test_survivors_are_found(tmp_path: Path) -> None:
    """The twin of `all_gone`: a process that stays is seen."""
    sleeper = subprocess.Popen(["sleep", "60"], env=environment(tmp_path / "runs"))
    try:
        assert until(lambda: processes(tmp_path / "runs") == [sleeper.pid], 5)
        assert not until(lambda: not processes(tmp_path / "runs"), 0.2)
    finally:
        sleeper.kill()
        sleeper.wait()
