"""kill -9 in mid-run, as a batch system or the kernel does it: what was finished is on disk, and says where it came from."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from preloaded import Started, command

from specbench.measure import summary
from specbench.measure.records.store import RunStore, find_run_folders, read_rounds, read_run, read_samples

OPTIONS = [
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
