"""What a number on this machine depends on: processor, cores, limits, and torch's numerical settings."""

from __future__ import annotations

import os
import platform
import re
import sys
from pathlib import Path
from typing import Any


def _first_match(path: str, pattern: str) -> str | None:
    try:
        match = re.search(pattern, Path(path).read_text(errors="replace"), re.MULTILINE)
    except OSError:
        return None
    return match[1].strip() if match else None


def _physical_cores() -> int | None:
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return None
    pairs = set(
        zip(re.findall(r"^physical id\s*:\s*(\d+)", text, re.M), re.findall(r"^core id\s*:\s*(\d+)", text, re.M), strict=False)
    )
    return len(pairs) or None


def machine_facts() -> dict[str, Any]:
    """Processor, cores, affinity, memory, limits of the container, load: what a CPU number depends on."""
    memory_kib = _first_match("/proc/meminfo", r"^MemTotal:\s*(\d+) kB")
    affinity = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {
        "os": platform.platform(),
        "machine": platform.machine(),
        "cpu_model": _first_match("/proc/cpuinfo", r"^model name\s*:\s*(.+)$") or platform.processor() or None,
        "logical_cores": os.cpu_count(),
        "physical_cores": _physical_cores(),
        "affinity": affinity,
        "memory_bytes": int(memory_kib) * 1024 if memory_kib else None,
        "cgroup_cpu_max": _first_match("/sys/fs/cgroup/cpu.max", r"^(.+)$"),
        "cgroup_memory_max": _first_match("/sys/fs/cgroup/memory.max", r"^(.+)$"),
        "frequency_governor": _first_match("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", r"^(.+)$"),
        "load_average_1min": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def torch_facts() -> dict[str, Any] | None:
    """Numerical settings of an already imported torch; None when it is not imported (this module never imports it)."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    backends = torch.backends
    return {
        "version": str(torch.__version__),
        "cuda": torch.version.cuda,
        "num_threads": torch.get_num_threads(),
        "num_interop_threads": torch.get_num_interop_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn": backends.cudnn.version() if backends.cudnn.is_available() else None,
        "mkldnn": backends.mkldnn.is_available(),
    }
