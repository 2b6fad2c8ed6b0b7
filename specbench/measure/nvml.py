"""NVIDIA's management library through nvidia-ml-py: facts, counters and sensors of devices, addressed by UUID.

Everything degrades to "not there, because ...": a missing package, driver, device or reading is a reason, never a zero.
"""

from __future__ import annotations

from typing import Any


def _load() -> tuple[Any | None, str | None]:
    """The initialised bindings, or the reason why there are none."""
    try:
        import pynvml
    except ImportError as error:
        return None, f"nvidia-ml-py is not installed ({error})"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return None, f"NVML: {error}"
    return pynvml, None


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def device_facts() -> tuple[list[dict[str, Any]], str | None]:
    """Name, UUID, driver, clocks and power limit of every device of this host, and why the list is empty if it is."""
    nvml, why = _load()
    if nvml is None:
        return [], why

    def ask(function: str, *arguments: Any) -> Any:
        try:
            return getattr(nvml, function)(*arguments)
        except (nvml.NVMLError, AttributeError):
            return None

    driver = ask("nvmlSystemGetDriverVersion")
    devices: list[dict[str, Any]] = []
    for index in range(ask("nvmlDeviceGetCount") or 0):
        handle = ask("nvmlDeviceGetHandleByIndex", index)
        if handle is None:
            devices.append({"index": index, "uuid": None, "why": "no access to this device"})
            continue
        memory, mig = ask("nvmlDeviceGetMemoryInfo", handle), ask("nvmlDeviceGetMigMode", handle)
        limit = ask("nvmlDeviceGetPowerManagementLimit", handle)
        name, uuid = ask("nvmlDeviceGetName", handle), ask("nvmlDeviceGetUUID", handle)
        devices.append(
            {
                "index": index,
                "name": None if name is None else _text(name),
                "uuid": None if uuid is None else _text(uuid),
                "driver": None if driver is None else _text(driver),
                "memory_bytes": None if memory is None else int(memory.total),
                "power_limit_watts": None if limit is None else limit / 1000,
                "sm_clock_mhz": ask("nvmlDeviceGetClockInfo", handle, nvml.NVML_CLOCK_SM),
                "memory_clock_mhz": ask("nvmlDeviceGetClockInfo", handle, nvml.NVML_CLOCK_MEM),
                "max_sm_clock_mhz": ask("nvmlDeviceGetMaxClockInfo", handle, nvml.NVML_CLOCK_SM),
                "applications_sm_clock_mhz": ask("nvmlDeviceGetApplicationsClock", handle, nvml.NVML_CLOCK_SM),
                "temperature_celsius": ask("nvmlDeviceGetTemperature", handle, nvml.NVML_TEMPERATURE_GPU),
                "persistence_mode": ask("nvmlDeviceGetPersistenceMode", handle),
                "mig_mode": None if mig is None else mig[0],
            }
        )
    ask("nvmlShutdown")
    return devices, None if devices else "NVML is there but names no device"
