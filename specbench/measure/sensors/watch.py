"""What else went on while prompts were timed: other work on the cores and accelerators, throttling, heat.

The watch looks between samples, never while a clock runs. It sees what pairing cannot take out: a neighbour that comes and goes
widens the intervals, and a device that is too hot or capped is slow in both arms alike.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from specbench.measure.sensors.energy_pass import MAX_TEMPERATURE_RISE
from specbench.measure.sensors.nvml import NvmlDevice, slowdowns

MAX_CORES_ELSEWHERE = 0.1  # cores kept busy by others, on average, before a warning
MIN_LOOK_SECONDS = 1.0  # between two looks at the accelerators
MIN_SECONDS = 1.0  # of watching before the cores' account says anything: the kernel counts in hundredths
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def busy_seconds(cores: Iterable[int], proc: Path = Path("/proc")) -> float | None:
    """Seconds that these cores have spent on anything but idling and waiting for disks; None where the system does not tell.

    Counted for the whole machine: in a container, other containers' work is part of it, and so is time that a hypervisor took.
    """
    names = {f"cpu{core}" for core in cores}
    try:
        rows = [line.split() for line in (proc / "stat").read_text().splitlines() if line.split(" ", 1)[0] in names]
    except OSError:
        return None
    if len(rows) != len(names):
        return None
    # user nice system idle iowait irq softirq steal; guest time is inside user
    return sum(sum(int(field) for field in row[1:9]) - int(row[4]) - int(row[5]) for row in rows) / _TICKS


def process_seconds(pid: int, proc: Path = Path("/proc")) -> float | None:
    """User and system seconds of a process with all its threads, and of its children that have ended; None when it is gone."""
    try:
        fields = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return sum(map(int, fields[11:15])) / _TICKS


class Watch:
    """`start`, `look` between samples, then `warnings` and `facts`.

    cores: that the run may use. pids: its processes, this one included. devices: the accelerators that it computes on.
    """

    def __init__(
        self,
        cores: Sequence[int],
        pids: Sequence[int],
        devices: Sequence[NvmlDevice] = (),
        *,
        proc: Path = Path("/proc"),
        now: Callable[[], float] = time.monotonic,
    ):
        self.cores, self.pids, self.devices, self._proc, self._now = list(cores), set(pids), list(devices), proc, now
        self._rows: dict[str, list[dict[str, Any]]] = {device.uuid: [] for device in devices}
        self._strangers: dict[str, set[int]] = {device.uuid: set() for device in devices}
        self._last_look = float("-inf")
        self._begin: tuple[float, float | None, float | None] | None = None

    def start(self) -> None:
        self._begin = self._account()
        self.look()

    def look(self) -> None:
        """One reading of the accelerators, if the last one is a second old."""
        if self.devices and self._now() - self._last_look >= MIN_LOOK_SECONDS:
            self._last_look = self._now()
            for device in self.devices:
                self._rows[device.uuid].append(device.sample())
                self._strangers[device.uuid] |= (device.process_ids() or set()) - self.pids

    def _account(self) -> tuple[float, float | None, float | None]:
        own = [process_seconds(pid, self._proc) for pid in self.pids]
        return self._now(), busy_seconds(self.cores, self._proc), None if None in own else sum(s or 0.0 for s in own)

    def cores_busy_elsewhere(self) -> float | None:
        """Cores that other processes kept busy since `start`, on average; None where that cannot be told."""
        assert self._begin is not None, "start first"
        (t0, busy0, own0), (t1, busy1, own1) = self._begin, self._account()
        if busy0 is None or busy1 is None or own0 is None or own1 is None or t1 - t0 < MIN_SECONDS:
            return None
        return max(0.0, (busy1 - busy0) - (own1 - own0)) / (t1 - t0)

    def warning_of_cores(self, meanwhile: str = "prompts were timed") -> list[str]:
        """A line where others used the cores since `start`; what was done in that time, in words."""
        elsewhere = self.cores_busy_elsewhere()
        if elsewhere is None or elsewhere <= MAX_CORES_ELSEWHERE:
            return []
        return [f"other processes kept {elsewhere:.1f} of {len(self.cores)} cores busy while {meanwhile}"]

    def warnings(self) -> list[str]:
        """One line per disturbance, to stand beside the numbers."""
        found = self.warning_of_cores()
        for uuid, rows in self._rows.items():
            slowed = slowdowns(rows)
            if slowed is not None:
                share, names = f"{slowed[0]} of {slowed[1]} looks", slowed[2]
                found.append(f"{uuid} was throttled while prompts were timed ({share}): {names}")
            heat = [row["temperature_celsius"] for row in rows if row.get("temperature_celsius") is not None]
            if heat and max(heat) - heat[0] > MAX_TEMPERATURE_RISE:
                found.append(f"{uuid} warmed by {max(heat) - heat[0]:.0f} degrees C while prompts were timed")
            if self._strangers[uuid]:
                pids = ", ".join(map(str, sorted(self._strangers[uuid])))
                found.append(f"other processes on device {uuid} while prompts were timed: {pids}")
        return found

    def facts(self) -> dict[str, Any]:
        """What was seen, for run.json."""
        return {
            "cores_busy_elsewhere": self.cores_busy_elsewhere(),
            "devices": {
                uuid: {
                    "num_looks": len(rows),
                    "first": rows[0] if rows else None,
                    "last": rows[-1] if rows else None,
                    "other_pids": sorted(self._strangers[uuid]),
                }
                for uuid, rows in self._rows.items()
            },
        }
