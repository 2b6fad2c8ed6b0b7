"""Joules and watts of blocks of work, with where they come from, and null with a reason where nothing can be read.

Sources, best first: `nvml_counter` (total-energy counter, board level), `rapl` (processor packages and memory), `nvml_power`
(trapezoid over the 10 Hz power trace), `none`. Gross joules come first; net of the measured idle power stands beside them.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from specbench.measure.sensors import nvml, rapl

SAMPLE_HZ = 10.0
SOURCES = ("nvml_counter", "rapl", "nvml_power", "none")  # best first


# ---------------------------------------------------------------------------------------------------- readings
@dataclass(frozen=True)
class DeviceEnergy:
    """One device over one block. `joules` is null with `why` where nothing could be read; `joules_from_power` cross-checks."""

    device: str  # UUID, or the processor domain's name
    role: str  # target | draft | host ...
    source: str
    joules: float | None
    seconds: float
    joules_from_power: float | None = None
    why: str | None = None
    counted: bool = True  # part of the block's total (a host beside accelerators is shown, not counted)


@dataclass(frozen=True)
class EnergyReading:
    """One block: the sum over counted devices, or null if one of them could not be read."""

    source: str
    joules: float | None
    seconds: float
    devices: tuple[DeviceEnergy, ...]
    why: str | None = None


class Probe(Protocol):
    """What the meter asks of a device."""

    device: str
    role: str
    counted: bool

    def start(self) -> None: ...

    def poll(self) -> dict[str, Any] | None:
        """One row of the power trace, without its time; None where the device has no power sensor."""
        ...

    def stop(self, seconds: float, rows: Sequence[Mapping[str, Any]]) -> DeviceEnergy:
        """Energy since `start`; `rows` is this device's part of the trace."""
        ...


def integrate_watts(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Joules under the power trace (trapezoid over time_seconds); None with fewer than two readings."""
    points = [(row["time_seconds"], row["watts"]) for row in rows if row.get("watts") is not None]
    if len(points) < 2 or points[-1][0] <= points[0][0]:
        return None
    return float(sum((t1 - t0) * (w0 + w1) / 2 for (t0, w0), (t1, w1) in itertools.pairwise(points)))


class NvmlProbe:
    """An accelerator: the counter's difference, else the integrated trace."""

    counted = True

    def __init__(self, device: nvml.NvmlDevice, role: str):
        self.nvml_device, self.device, self.role = device, device.uuid, role
        self._start: float | None = None
        self._why: str | None = None

    def start(self) -> None:
        self._start, self._why = self.nvml_device.energy_joules()

    def poll(self) -> dict[str, Any] | None:
        return self.nvml_device.sample()

    def stop(self, seconds: float, rows: Sequence[Mapping[str, Any]]) -> DeviceEnergy:
        integrated = integrate_watts(rows)
        why = self._why

        def reading(source: str, joules: float | None, why: str | None = None) -> DeviceEnergy:
            return DeviceEnergy(self.device, self.role, source, joules, seconds, integrated, why, self.counted)

        if self._start is not None:
            end, why = self.nvml_device.energy_joules()
            if end is not None:
                if end > self._start:
                    return reading("nvml_counter", end - self._start)
                # Equal: the window ended before the counter's next tick. Smaller: the driver was reloaded in between.
                why = f"the energy counter did not advance within {seconds:.3f} s"
        if integrated is not None and seconds > 0:
            # The trace covers its first to its last row; scale to the whole window.
            times = [row["time_seconds"] for row in rows if row.get("watts") is not None]
            return reading("nvml_power", integrated * seconds / (times[-1] - times[0]), why)
        return reading("none", None, why or "no counter and no power trace")


class RaplProbe:
    """A processor: all packages and their memory together."""

    def __init__(self, domains: Sequence[rapl.RaplDomain], role: str, counted: bool):
        self._domains, self.role, self.counted = domains, role, counted
        self.device = "+".join(domain.name for domain in domains)
        self._start = 0.0
        self._why: str | None = None

    def _joules(self) -> float | None:
        try:
            return sum(domain.update() for domain in self._domains)
        except rapl.RaplUnavailable as error:
            self._why = str(error)
            return None

    def start(self) -> None:
        self._why = None
        self._start = self._joules() or 0.0

    def poll(self) -> dict[str, Any] | None:
        """Reading often is what makes wrap-around visible; the trace's watts follow from the differences."""
        joules = self._joules()
        return None if joules is None else {"device": self.device, "joules": joules}

    def stop(self, seconds: float, rows: Sequence[Mapping[str, Any]]) -> DeviceEnergy:
        end = self._joules() if self._why is None else None
        joules, why = None if end is None else end - self._start, self._why
        if joules is not None and joules <= 0:
            joules, why = None, f"the RAPL counters did not advance within {seconds:.3f} s"
        source = "none" if joules is None else "rapl"
        return DeviceEnergy(self.device, self.role, source, joules, seconds, None, why, self.counted)


def probes(gpus: Mapping[str, str], rapl_root: Path = rapl.SYSFS_ROOT) -> tuple[list[Probe], str | None]:
    """Probes for accelerators by UUID and role, e.g. {"GPU-1": "target", "GPU-2": "draft"}; for none, the processor (role
    "host", counted). Beside accelerators the processor is shown but not counted. (probes, why there are none)."""
    found: list[Probe] = []
    if gpus:
        try:
            found += [NvmlProbe(device, gpus[uuid]) for uuid, device in zip(gpus, nvml.devices(list(gpus)), strict=True)]
        except nvml.NvmlUnavailable as error:
            return [], str(error)
    try:
        found.append(RaplProbe(rapl.domains(rapl_root), "host", counted=not gpus))
    except rapl.RaplUnavailable as error:
        if not gpus:
            return [], str(error)
    return found, None


# ---------------------------------------------------------------------------------------------------- the meter
class EnergyMeter:
    """Counters around blocks, and a trace of all probes by a thread of 10 readings a second.

    `synchronize` waits for the devices' queued work before each counter is read. `now` and `thread=False` (then call `poll`)
    are for tests and replays. `rows` is the trace of all blocks: time_seconds (clock `now`), arm, role, device, watts ...
    """

    def __init__(
        self,
        probes: Sequence[Probe],
        *,
        why: str | None = None,
        synchronize: Callable[[], None] | None = None,
        now: Callable[[], float] = time.perf_counter,
        thread: bool = True,
    ):
        self.probes, self.why, self.rows = list(probes), why, list[dict[str, Any]]()
        self._synchronize, self._period, self._now, self._threaded = synchronize, 1 / SAMPLE_HZ, now, thread
        self._thread: threading.Thread | None = None
        self._halt = threading.Event()
        self._first = threading.Event()
        self._first_row = 0
        self._started: float | None = None
        self._joules_seen: dict[str, tuple[float, float]] = {}
        self._arm: str | None = None

    @property
    def available(self) -> bool:
        return bool(self.probes)

    def start(self, arm: str | None = None) -> None:
        """Begin a block; its rows of the trace say whose it is (`arm`). Returns when the first of them is there."""
        assert self._started is None, "a block is running"
        self._arm = arm
        if self._synchronize is not None:
            self._synchronize()
        self._first_row = len(self.rows)
        self._joules_seen.clear()
        self._halt.clear()
        self._first.clear()
        if self.probes and self._threaded:
            self._thread = threading.Thread(target=self._run, name="specbench-power-trace", daemon=True)
            self._thread.start()
            self._first.wait()
        elif self.probes:
            self.poll()
        for probe in self.probes:
            probe.start()
        self._started = self._now()

    def stop(self) -> EnergyReading:
        """End the block: one last row of the trace, then the clock and the counters."""
        assert self._started is not None, "no block is running"
        if self._synchronize is not None:
            self._synchronize()
        if self._thread is not None:
            self._halt.set()
            self._thread.join()
            self._thread = None
        if self.probes:
            self.poll()
        seconds = self._now() - self._started
        self._started = None
        own = self.rows[self._first_row :]
        parts = tuple(probe.stop(seconds, [row for row in own if row["device"] == probe.device]) for probe in self.probes)
        return total_of(parts, seconds, self.why)

    def poll(self) -> None:
        """One reading of every probe."""
        for probe in self.probes:
            row = probe.poll()
            if row is None:
                continue
            at = self._now()
            if "joules" in row:  # a counter without a power sensor: mean power since the last reading
                joules = row.pop("joules")
                before = self._joules_seen.get(probe.device)
                self._joules_seen[probe.device] = (at, joules)
                row["watts"] = (joules - before[1]) / (at - before[0]) if before is not None and at > before[0] else None
            self.rows.append({"time_seconds": at, "arm": self._arm, "role": probe.role, **row})

    def _run(self) -> None:
        try:
            while not self._halt.is_set():
                self.poll()
                self._first.set()
                self._halt.wait(self._period)
        finally:
            self._first.set()  # a probe that raises must not leave `start` waiting


def total_of(parts: Sequence[DeviceEnergy], seconds: float, why: str | None = None) -> EnergyReading:
    """The block's total: over counted devices, null as soon as one of them has no reading; the source is the weakest one."""
    counted = [part for part in parts if part.counted]
    if not counted:
        return EnergyReading("none", None, seconds, tuple(parts), why or "no device whose energy can be read")
    missing = [f"{part.device} ({part.role}): {part.why}" for part in counted if part.joules is None]
    if missing:
        return EnergyReading("none", None, seconds, tuple(parts), "; ".join(missing))
    source = max((part.source for part in counted), key=SOURCES.index)
    return EnergyReading(source, sum(part.joules or 0.0 for part in counted), seconds, tuple(parts))
