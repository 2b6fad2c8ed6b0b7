"""Counter, trace and the alternating energy pass, in an ordinary run on the device."""

from __future__ import annotations

from typing import Any

from specbench.measure.sensors import nvml
from specbench.qualify.plan import FAILED, NOT_RUN, PASSED, Task, result
from specbench.qualify.runs import on_device, run_specbench

LONG = ["data=humaneval", "data.source=standin", "data.limit=4", "decoding.max_new_tokens=128", "measure.repeats=2"]


def run(task: Task) -> dict[str, Any]:
    """Passed where both arms got joules per token from a counter and its integral over the power trace agrees within 35 %."""
    notes = []
    try:
        devices = nvml.devices()
        notes.append(f"NVML knows {len(devices)} devices")
        if task.on_accelerator:
            uuid = nvml.uuid_of_cuda_device(int(task.device.partition(":")[2] or 0))
            readings = next((device.sample() for device in devices if device.uuid == uuid), {})
            notes += [f"one reading of {key}: {value}" for key, value in readings.items()]
    except nvml.NvmlUnavailable as error:
        notes.append(str(error))
    done = run_specbench(
        task, "energy", ["method=speculative", "pair=builtin", *LONG, "measure.trace=true", *on_device(task)], task.left - 5
    )
    notes.append(f"`{done.command}`")
    if done.summary is None:
        return result(FAILED if done.reached else NOT_RUN, done.why or "", notes=notes)
    energy = done.summary["energy"]
    rows = [(key, value) for key, value in energy.items() if not isinstance(value, dict | list)]
    table = {"columns": ("what", "value"), "rows": rows}
    joules, other = energy.get("joules_per_token"), energy.get("baseline_joules_per_token")
    if joules is None or other is None:
        why = energy.get("joules_per_token_why") or energy.get("baseline_joules_per_token_why")
        status = FAILED if task.on_accelerator else NOT_RUN
        return result(status, f"no energy measured: {why}", tables=[table], notes=notes)
    doubts = [warning for warning in done.summary["warnings"] if "joules" in warning or "power" in warning]
    status = PASSED if energy["source"] == "nvml_counter" or not task.on_accelerator else FAILED
    verdict = f"{joules:.3f} J/token, autoregressive {other:.3f}, from {energy['source']}"
    return result(status, verdict, tables=[table], notes=[*notes, *doubts], energy=energy)
