"""The energy pass: blocks of whole prompts, A B B A, with the meter around each; and what to warn of.

Energy is a property of a block of prompts, not of a prompt: the counters tick about every 100 ms, so that a window of 10 s errs
by about 1 % and one of 0.5 s by 15 %. Blocks alternate A B B A, so that heat left by one arm meets both. The timings of this
pass are never used for speed. `attribution` makes figures of the blocks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from specbench.measure.sensors import nvml
from specbench.measure.sensors.energy import EnergyMeter, EnergyReading, NvmlProbe, Probe

MIN_BLOCK_SECONDS = 10.0
MAX_TEMPERATURE_RISE = 10.0  # degrees Celsius over a pass
ABBA = ("method", "baseline", "baseline", "method")
IDLE = "idle"  # stands in the power trace where an arm would


@dataclass(frozen=True)
class Work:
    """What an arm did in a block. num_output_tokens counts all output tokens, each turn's first one included.

    `active_seconds` by role and part, e.g. {"target": {"verify": 4.1, "prefill": 0.3}, "draft": {"draft": 3.0,
    "discarded_draft": 0.6}}: what the joules are attributed by. See `parts_of_work`.
    """

    num_output_tokens: int
    active_seconds: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Block:
    arm: str
    reading: EnergyReading
    work: Work


def abba_pass(
    run_block: Callable[[str, float], Work], meter: EnergyMeter, min_seconds: float = MIN_BLOCK_SECONDS
) -> list[Block]:
    """Four blocks: method, baseline, baseline, method. run_block(arm, min_seconds) decodes whole prompts of one arm until that
    many seconds have passed and returns the work done."""
    blocks = []
    for arm in ABBA:
        meter.start(arm)
        try:
            work = run_block(arm, min_seconds)
        finally:
            reading = meter.stop()  # also when the block fails: no thread is left behind
        blocks.append(Block(arm, reading, work))
    return blocks


def idle_watts(meter: EnergyMeter, seconds: float = MIN_BLOCK_SECONDS) -> dict[str, float]:
    """Mean power by device with models loaded and nothing to do; devices that cannot be read are left out."""
    meter.start(IDLE)
    time.sleep(seconds)
    reading = meter.stop()
    return {part.device: part.joules / part.seconds for part in reading.devices if part.joules is not None and part.seconds > 0}


def foreign_processes(probes: Sequence[Probe], own: Sequence[int] | None = None) -> dict[str, list[int]]:
    """Processes on the measured accelerators that are not ours, by device. `own`: process ids of the run's workers."""
    mine = {os.getpid(), *(own or ())}
    found: dict[str, list[int]] = {}
    for probe in probes:
        if isinstance(probe, NvmlProbe):
            others = (probe.nvml_device.process_ids() or set()) - mine
            if others:
                found[probe.device] = sorted(others)
    return found


def trace_warnings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Throttling and heat in a power trace, one line per device."""
    warnings = []
    for device in dict.fromkeys(row["device"] for row in rows):
        own = [row for row in rows if row["device"] == device]
        slowed = nvml.slowdowns(own)
        if slowed is not None:
            share, names = slowed[0] / slowed[1], slowed[2]
            warnings.append(f"{device} was throttled in {share:.0%} of the power trace: {names}")
        heat = [row["temperature_celsius"] for row in own if row.get("temperature_celsius") is not None]
        if heat and heat[-1] - heat[0] > MAX_TEMPERATURE_RISE:
            warnings.append(f"{device} warmed by {heat[-1] - heat[0]:.0f} degrees C during the energy pass")
    return warnings
