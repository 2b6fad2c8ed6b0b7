"""What a run costs beside time, and what disturbed it: energy pass, memory footprint, watch. None of them touches a timing."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from specbench.config.specs import PairSpec
from specbench.engine.request import Request
from specbench.engine.runtime import Runtime
from specbench.measure import attribution
from specbench.measure.records.events import PARTS, SampleRecord
from specbench.measure.records.store import RunStore
from specbench.measure.sensors import energy_pass, memory, nvml
from specbench.measure.sensors.clock import clock_for
from specbench.measure.sensors.energy import EnergyMeter, probes
from specbench.measure.sensors.watch import Watch
from specbench.processes.placement import available_cores
from specbench.run.arms import Arm

NOT_ASKED = "measure.power=off"


def devices_by_uuid(pair: PairSpec, uses_draft: bool) -> dict[str, str]:
    """Accelerators that the run reserves, by UUID, with their role; a shared one is the target's."""
    roles: dict[str, str] = {}
    for spec in (pair.target, pair.draft if uses_draft else None):
        if spec is not None and spec.device.startswith("cuda"):
            index = int(spec.device.partition(":")[2] or 0)
            roles.setdefault(nvml.uuid_of_cuda_device(index), spec.role)
    return roles


def watch_for(arms: Mapping[str, Arm], pair: PairSpec, uses_draft: bool) -> Watch:
    """Looks after the cores, processes and accelerators of a run; without NVML, after the cores alone."""
    pids = [os.getpid(), *(pid for arm in arms.values() for pid in arm.method.pids())]
    try:
        roles = devices_by_uuid(pair, uses_draft)
        devices = nvml.devices(list(roles)) if roles else []
    except nvml.NvmlUnavailable:
        devices = []
    return Watch(available_cores(), pids, devices)


def measure_energy(
    arms: Mapping[str, Arm], requests: Mapping[str, Sequence[Request]], runtime: Runtime, uses_draft: bool, store: RunStore
) -> tuple[dict[str, Any], list[str]]:
    """The `energy` entry of the summary, and warnings. Writes the power trace. Null with the reason where nothing can be read.

    Four blocks, method, baseline, baseline, method, each of whole prompts for at least 10 s, in the order of `requests` (by
    arm); before them 10 s of idleness with the models loaded.
    """
    try:
        found, why = probes(devices_by_uuid(runtime.pair, uses_draft))
    except nvml.NvmlUnavailable as error:
        found, why = [], str(error)
    if not found:
        return nothing_measured(why or "no energy counter and no power sensor can be read"), []
    if len(arms) < 2:
        return nothing_measured("one arm: the pass alternates two"), []
    meter = EnergyMeter(found, why=why, synchronize=clock_for(runtime.device).synchronize)
    idle = energy_pass.idle_watts(meter)
    blocks = energy_pass.abba_pass(lambda arm, seconds: run_block(arms[arm], requests[arm], seconds), meter)
    store.append_power(meter.rows)
    warnings = energy_pass.trace_warnings(meter.rows)
    for device, pids in energy_pass.foreign_processes(
        found, own=[pid for arm in arms.values() for pid in arm.method.pids()]
    ).items():
        warnings.append(f"other processes on device {device}: {', '.join(map(str, pids))}")
    return attribution.summarise(blocks, idle), warnings


def nothing_measured(why: str) -> dict[str, Any]:
    """Null and never 0: 'not measured' must not look like 'free'."""
    return {
        "source": "none",
        "joules_per_token": None,
        "joules_per_token_why": why,
        "baseline_joules_per_token": None,
        "baseline_joules_per_token_why": why,
    }


def run_block(
    arm: Arm, requests: Sequence[Request], min_seconds: float, clock: Callable[[], float] = time.perf_counter
) -> energy_pass.Work:
    """Decode whole prompts of one arm, in order and again from the start, until `min_seconds` have passed; each time as a pass
    of its own, so that a method which keeps state does not know the answers.
    """
    tokens = drafted = discarded = 0
    seconds = dict.fromkeys((*PARTS, "other"), 0.0)
    concurrent: dict[str, float] = {}
    prefill, start, index = 0.0, clock(), 0
    while index == 0 or clock() - start < min_seconds:
        if index % len(requests) == 0:
            arm.method.reset()
        record, rounds = arm.run(requests[index % len(requests)], repeat=-2, order=-1, category=None)
        index += 1
        if record.decode_seconds is None:
            raise RuntimeError(f"the energy pass of the {arm.name} arm failed: {record.error}")
        tokens += len(record.output_ids)
        prefill += record.prefill_seconds or 0.0
        drafted += sum(r.num_drafted for r in rounds)
        discarded += sum(r.num_drafted - r.num_accepted for r in rounds)
        parts = {part: sum(getattr(r, f"{part}_seconds") for r in rounds) for part in PARTS}
        for name, value in parts.items():
            seconds[name] += value
        seconds["other"] += record.decode_seconds - sum(parts.values())
        for name, value in record.concurrent_seconds.items():
            concurrent[name] = concurrent.get(name, 0.0) + value
    share = discarded / drafted if drafted else 0.0
    return energy_pass.Work(tokens, attribution.parts_of_work(seconds, concurrent, prefill, share))


def footprint(
    runtime: Runtime, arms: Mapping[str, Arm], most_tokens: int, peaks: Mapping[str, int | None] | None = None
) -> dict[str, Any]:
    """Predicted and measured bytes side by side. most_tokens: the longest prompt plus its output.

    peaks: device memory at its peak by arm, of the process that owns the target. A draft in a process of its own has a row of
    its own (`draft_device_peak`): on a shared device the two add up.
    """
    method = arms["method"].method
    measured: dict[str, int | None] = {"target_weights": weight_bytes(runtime.target)}
    why: dict[str, str] = dict.fromkeys(("target_logits", "draft_logits"), "not counted apart: inside the device's peak")
    if runtime.draft is not None:
        measured["draft_weights"] = weight_bytes(runtime.draft)
    elif method.needs.draft == "worker":
        why |= dict.fromkeys(("draft_weights", "draft_kv"), "the draft's process did not answer")
    measured |= method.memory_bytes()
    for arm, peak in (peaks or {}).items():
        measured[f"{arm}_device_peak"] = peak
        why[f"{arm}_device_peak"] = f"no allocator counts on {runtime.device}"
    gc.collect()
    measured["process_rss"] = memory.process_rss_bytes()
    measured["process_peak_rss"] = memory.process_peak_rss_bytes()
    predicted: dict[str, int] | None = None
    try:
        draft = None
        if runtime.pair.draft is not None and method.needs.draft != "none":
            draft = dimensions_of(runtime.pair.draft)
        target = dimensions_of(runtime.pair.target, runtime.target.num_parameters)
        predicted = memory.predict(target, draft, max_tokens=most_tokens, num_rows=1 + method.max_nodes)
    except (ValueError, KeyError) as error:
        why["predicted"] = str(error)
    return memory.footprint_table(predicted, measured, why)


def device_peaks(samples: Sequence[SampleRecord], arms: Mapping[str, Arm]) -> dict[str, int | None]:
    """The largest device memory of any sample, by arm; None on a CPU."""
    return {
        arm: max((r.memory_peak_bytes for r in samples if r.arm == arm and r.memory_peak_bytes is not None), default=None)
        for arm in arms
    }


def weight_bytes(model: Any) -> int:
    """Bytes of a loaded model's parameters, tied ones once."""
    return sum(p.numel() * p.element_size() for p in model.module.parameters())


def dimensions_of(spec: Any, num_parameters: int | None = None) -> memory.Dimensions:
    """A model's shape from its configuration; parameters are counted on weightless tensors where it is not loaded here."""
    from specbench.pair.load import on_meta, read_config

    config = read_config(spec)
    if num_parameters is None:
        num_parameters = sum(p.numel() for p in on_meta(spec).parameters())
    return memory.Dimensions.of(config.to_dict(), num_parameters, spec.dtype)
