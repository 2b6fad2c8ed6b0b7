"""NVIDIA's management library through nvidia-ml-py: facts, counters and sensors of devices, addressed by UUID.

Everything degrades to "not there, because ...": a missing package, driver, device or reading is a reason, never a zero.
CUDA's order of devices need not be NVML's, so indices are never carried from one to the other: see `uuid_of_cuda_device`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

# Clock event reasons that mean "slower than it could be": power cap, hardware slowdown, thermal (software, hardware), brake.
THROTTLE_BITS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "thermal (software)",
    0x40: "thermal (hardware)",
    0x80: "power brake",
}


class NvmlUnavailable(RuntimeError):
    """No bindings, no driver, no such device; the text is the reason."""


def _load() -> Any:
    """The initialised bindings. Raises NvmlUnavailable."""
    try:
        import pynvml
    except ImportError as error:
        raise NvmlUnavailable(f"nvidia-ml-py is not installed ({error})") from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NvmlUnavailable(f"NVML: {error}") from error
    return pynvml


def _text(value: Any) -> str | None:
    return None if value is None else value.decode() if isinstance(value, bytes) else str(value)


class NvmlDevice:
    """One device. Readings return (value, None) or (None, reason)."""

    def __init__(self, nvml: Any, handle: Any):
        self._nvml, self._handle = nvml, handle
        self.uuid = _text(self._ask("nvmlDeviceGetUUID")[0]) or "unknown"
        self.name = _text(self._ask("nvmlDeviceGetName")[0]) or "unknown"

    def _ask(self, function: str, *arguments: Any) -> tuple[Any, str | None]:
        try:
            return getattr(self._nvml, function)(self._handle, *arguments), None
        except self._nvml.NVMLError as error:
            return None, f"{function}: {error}"
        except AttributeError:
            return None, f"{function}: not in the installed nvidia-ml-py"

    def energy_joules(self) -> tuple[float | None, str | None]:
        """Joules since the driver was loaded (Volta and newer); ticks every 20 to 100 ms."""
        value, why = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        return (None if value is None else value / 1000), why

    def power_watts(self) -> tuple[float | None, str | None]:
        """Instantaneous board power where the driver names it so, else the general reading (a 1 s average on many devices)."""
        fields, why = self._ask("nvmlDeviceGetFieldValues", [self._nvml.NVML_FI_DEV_POWER_INSTANT])
        if fields is not None and fields[0].nvmlReturn == self._nvml.NVML_SUCCESS:
            return fields[0].value.uiVal / 1000, None
        value, why = self._ask("nvmlDeviceGetPowerUsage")
        return (None if value is None else value / 1000), why

    def sample(self) -> dict[str, Any]:
        """One row of the power trace; what cannot be read is null."""
        nvml = self._nvml
        watts, why = self.power_watts()
        utilisation, memory = self._ask("nvmlDeviceGetUtilizationRates")[0], self._ask("nvmlDeviceGetMemoryInfo")[0]
        row = {
            "device": self.uuid,
            "watts": watts,
            "utilisation": None if utilisation is None else utilisation.gpu / 100,
            "memory_bytes": None if memory is None else int(memory.used),
            "temperature_celsius": self._ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU)[0],
            "sm_clock_mhz": self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM)[0],
            "memory_clock_mhz": self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM)[0],
            "throttle_bits": self.clock_event_bits(),
        }
        return row if why is None else {**row, "watts_why": why}

    def clock_event_bits(self) -> int | None:
        for kind in ("Event", "Throttle"):  # new, old name
            value = self._ask(f"nvmlDeviceGetCurrentClocks{kind}Reasons")[0]
            if value is not None:
                return int(value)
        return None

    def process_ids(self) -> set[int] | None:
        """Processes with a context on the device; None where the driver does not tell (containers often hide them)."""
        found, _ = self._ask("nvmlDeviceGetComputeRunningProcesses")
        return None if found is None else {process.pid for process in found}

    def facts(self) -> dict[str, Any]:
        """Name, UUID, memory, clocks and limits, for provenance."""
        nvml, ask = self._nvml, self._ask
        memory, mig = ask("nvmlDeviceGetMemoryInfo")[0], ask("nvmlDeviceGetMigMode")[0]
        limit = ask("nvmlDeviceGetPowerManagementLimit")[0]
        return {
            "name": self.name,
            "uuid": self.uuid,
            "memory_bytes": None if memory is None else int(memory.total),
            "power_limit_watts": None if limit is None else limit / 1000,
            "sm_clock_mhz": ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM)[0],
            "memory_clock_mhz": ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM)[0],
            "max_sm_clock_mhz": ask("nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_SM)[0],
            "applications_sm_clock_mhz": ask("nvmlDeviceGetApplicationsClock", nvml.NVML_CLOCK_SM)[0],
            "temperature_celsius": ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU)[0],
            "persistence_mode": ask("nvmlDeviceGetPersistenceMode")[0],
            "mig_mode": None if mig is None else mig[0],
        }


def devices(uuids: Sequence[str] | None = None) -> list[NvmlDevice]:
    """The devices with these UUIDs, in this order, or all of this host. Raises NvmlUnavailable naming what is missing."""
    nvml = _load()
    asked = ""
    found = []
    try:
        if uuids is None:
            found = [NvmlDevice(nvml, nvml.nvmlDeviceGetHandleByIndex(i)) for i in range(nvml.nvmlDeviceGetCount())]
        for uuid in uuids or ():
            asked = f"device {uuid}: "
            found.append(NvmlDevice(nvml, nvml.nvmlDeviceGetHandleByUUID(uuid)))
    except nvml.NVMLError as error:
        raise NvmlUnavailable(f"NVML: {asked}{error}") from error
    if uuids is None and not found:
        raise NvmlUnavailable("NVML is there but names no device")
    return found


def device_facts() -> tuple[list[dict[str, Any]], str | None]:
    """Facts of every device of this host with the driver's version, and why the list is empty if it is."""
    try:
        found = devices()
    except NvmlUnavailable as error:
        return [], str(error)
    nvml = _load()
    try:
        driver = _text(nvml.nvmlSystemGetDriverVersion())
    except nvml.NVMLError:
        driver = None
    return [{**device.facts(), "driver": driver} for device in found], None


def uuid_of_cuda_device(index: int) -> str:
    """The NVML UUID of `cuda:<index>`. Raises NvmlUnavailable where it cannot be known for certain.

    From torch's device properties if torch is imported (its UUID lacks the prefix), else from CUDA_VISIBLE_DEVICES where that
    names UUIDs or CUDA_DEVICE_ORDER=PCI_BUS_ID makes both orders one, else if this host has a single device.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        own = getattr(torch.cuda.get_device_properties(index), "uuid", None)
        if own is not None:
            return str(own) if str(own).startswith(("GPU-", "MIG-")) else f"GPU-{own}"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    named = [part.strip() for part in visible.split(",")] if visible else None
    if named is not None and index >= len(named):
        raise NvmlUnavailable(f"cuda:{index} is not among CUDA_VISIBLE_DEVICES={visible}")
    all_devices = devices()
    if named is not None and not named[index].isdigit():  # a UUID or an unambiguous beginning of one; MIG names as they are
        matching = [device.uuid for device in all_devices if device.uuid.startswith(named[index])]
        return matching[0] if len(matching) == 1 else named[index]
    position = index if named is None else int(named[index])
    if len(all_devices) == 1 and position == 0:
        return all_devices[0].uuid
    if os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" and position < len(all_devices):
        return all_devices[position].uuid
    raise NvmlUnavailable(
        f"cuda:{index}: set CUDA_DEVICE_ORDER=PCI_BUS_ID, or NVML may mean another of {len(all_devices)} devices"
    )


def slowdowns(rows: Sequence[Mapping[str, Any]]) -> tuple[int, int, str] | None:
    """Of one device's trace: slowed readings, all readings and the reasons; None where it was never slowed down."""
    bits = [row["throttle_bits"] for row in rows if row.get("throttle_bits") is not None]
    slowed = sum(any(b & bit for bit in THROTTLE_BITS) for b in bits)
    names = sorted(name for bit, name in THROTTLE_BITS.items() if any(b & bit for b in bits))
    return (slowed, len(bits), ", ".join(names)) if slowed else None
