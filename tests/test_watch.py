"""Who else was there while prompts were timed: on a made-up /proc, on the real one, and on devices that answer as told."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from specbench.measure.sensors import watch
from specbench.measure.sensors.watch import Watch

POWER_CAP = 0x04


class FakeProc:
    """A /proc of two cores and two processes, counted in seconds."""

    def __init__(self, root: Path):
        self.root, self.time = root, 100.0
        self.busy, self.waiting, self.own = {0: 50.0, 1: 60.0, 2: 70.0}, 5.0, {10: 20.0, 11: 3.0}
        self.write()

    def write(self) -> None:
        ticks = lambda seconds: round(seconds * watch._TICKS)  # noqa: E731
        lines = ["cpu  1 2 3 4 5 6 7 8 0 0"]
        for core, seconds in self.busy.items():
            # user nice system idle iowait irq softirq steal guest guest_nice
            idle = ticks(1000.0 - seconds)
            lines.append(
                f"cpu{core} {ticks(seconds - 3)} 0 {ticks(1)} {idle} {ticks(self.waiting)} 0 {ticks(1)} {ticks(1)} 9 9"
            )
        (self.root / "stat").write_text("\n".join([*lines, "intr 5", ""]))
        for pid, seconds in self.own.items():
            (self.root / str(pid)).mkdir(exist_ok=True)
            times = [seconds - 1.5, 0.5, 0.5, 0.5]  # user, system, and those of children that have ended
            fields = ["S", *["0"] * 10, *(str(ticks(part)) for part in times), *["0"] * 28]
            (self.root / str(pid) / "stat").write_text(f"{pid} (a (strange) name) {' '.join(fields)}")

    def run(self, seconds: float, own: float = 0.0, others: float = 0.0) -> None:
        """Time passes; both processes together use `own` cores and others use `others`, on cores 0 and 1."""
        self.time += seconds
        self.own[10] += own * seconds / 2
        self.own[11] += own * seconds / 2
        self.busy[0] += (own + others) * seconds / 2
        self.busy[1] += (own + others) * seconds / 2
        self.busy[2] += seconds  # a core that is not the run's
        self.waiting += seconds  # disks are no work
        self.write()


@pytest.fixture
def proc(tmp_path: Path) -> FakeProc:
    return FakeProc(tmp_path)


def watching(proc: FakeProc, *devices: Any) -> Watch:
    made = Watch([0, 1], [10, 11], devices, proc=proc.root, now=lambda: proc.time)
    made.start()
    return made


class Device:
    """An accelerator that answers as told."""

    uuid = "GPU-1"

    def __init__(self) -> None:
        self.bits, self.celsius, self.pids = 0x01, 40, {10}

    def sample(self) -> dict[str, Any]:
        return {"device": self.uuid, "throttle_bits": self.bits, "temperature_celsius": self.celsius}

    def process_ids(self) -> set[int] | None:
        return self.pids


# ---------------------------------------------------------------------------------------------------------------- the cores
def test_the_runs_own_work_is_no_disturbance(proc: FakeProc) -> None:
    seen = watching(proc)
    proc.run(20.0, own=1.9, others=0.05)
    assert seen.cores_busy_elsewhere() == pytest.approx(0.05, abs=0.01) and seen.warnings() == []


def test_other_processes_on_the_runs_cores_are_said_aloud(proc: FakeProc) -> None:
    seen = watching(proc)
    proc.run(20.0, own=1.0, others=0.7)
    assert seen.warnings() == ["other processes kept 0.7 of 2 cores busy while prompts were timed"]
    assert seen.facts()["cores_busy_elsewhere"] == pytest.approx(0.7, abs=0.01)


def test_what_cannot_be_told_is_null_and_no_warning(proc: FakeProc) -> None:
    seen = watching(proc)
    proc.run(0.3, others=2.0)
    assert seen.cores_busy_elsewhere() is None, "too short to tell"
    proc.run(5.0, others=2.0)
    (proc.root / "11" / "stat").unlink()  # a worker that has died
    assert seen.cores_busy_elsewhere() is None and seen.warnings() == []
    nowhere = Watch([0], [1], proc=proc.root / "none")
    nowhere.start()
    assert nowhere.cores_busy_elsewhere() is None


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="no /proc here")
def test_a_real_neighbour_is_seen_and_own_work_is_not() -> None:
    cores = sorted(os.sched_getaffinity(0))
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.3)  # its start belongs to nobody
        theirs, ours = Watch(cores, [os.getpid()]), Watch(cores, [os.getpid(), child.pid])
        theirs.start()
        ours.start()
        time.sleep(1.5)
        assert (theirs.cores_busy_elsewhere() or 0.0) - (ours.cores_busy_elsewhere() or 0.0) > 0.1
    finally:
        child.kill()
        child.wait()


# --------------------------------------------------------------------------------------------------------- the accelerators
def test_a_quiet_device_says_nothing(proc: FakeProc) -> None:
    device = Device()
    seen = watching(proc, device)
    for _ in range(5):
        proc.run(2.0)
        seen.look()
    assert seen.warnings() == [] and seen.facts()["devices"]["GPU-1"]["num_looks"] == 6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bits": POWER_CAP}, "GPU-1 was throttled while prompts were timed (1 of 2 looks): power cap"),
        ({"celsius": 55}, "GPU-1 warmed by 15 degrees C while prompts were timed"),
        ({"pids": {10, 11, 77}}, "other processes on device GPU-1 while prompts were timed: 77"),
    ],
)
def test_each_disturbance_of_a_device_has_its_words(proc: FakeProc, change: dict[str, Any], words: str) -> None:
    device = Device()
    seen = watching(proc, device)
    vars(device).update(change)
    proc.run(2.0)
    seen.look()
    assert seen.warnings() == [words]


def test_looks_are_a_second_apart_and_a_silent_driver_is_no_stranger(proc: FakeProc) -> None:
    device = Device()
    device.pids = None  # type: ignore[assignment]
    seen = watching(proc, device)
    for _ in range(20):
        proc.run(0.1)
        seen.look()
    assert seen.facts()["devices"]["GPU-1"]["num_looks"] in (2, 3) and seen.warnings() == []
