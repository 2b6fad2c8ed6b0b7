"""What the device, the host and the software are."""

from __future__ import annotations

import time
from typing import Any

import torch

from specbench.measure.records.provenance import collect
from specbench.qualify.plan import FAILED, PASSED, Task, result


def run(task: Task) -> dict[str, Any]:
    """Facts; failed where an accelerator does not answer for itself (a small product on it is wrong)."""
    facts = collect()
    host, rows = facts["machine"], []
    name = host["cpu_model"]
    if task.on_accelerator:
        properties = torch.cuda.get_device_properties(task.device)
        name = properties.name
        rows += [
            ("memory, GiB", properties.total_memory / 2**30),
            ("multiprocessors", properties.multi_processor_count),
            ("compute capability", f"{properties.major}.{properties.minor}"),
            ("CUDA of torch", torch.version.cuda),
        ]
        for entry in facts["gpus"] or ():
            rows += [(f"NVML: {key}", value) for key, value in entry.items() if value is not None]
        if not facts["gpus"]:
            rows.append(("NVML", facts.get("gpus_why", "no device")))
    rows += [(key.replace("_", " "), value) for key, value in host.items() if value is not None]
    rows += [(name_, facts["packages"].get(name_)) for name_ in ("torch", "transformers") if name_ in facts["packages"]]
    rows += [("python", facts["python"]), ("commit", facts["git"].get("commit"))]
    values = torch.arange(64.0, device=task.device)
    right = float(values @ values) == 85344.0  # the sum of squares below 64
    table = {"columns": ("fact", "value"), "rows": rows}
    verdict = f"{name}, torch {torch.__version__}" if right else f"{name} computes a product of integers wrongly"
    return result(
        PASSED if right else FAILED, verdict, name=name, date=time.strftime("%Y-%m-%d"), tables=[table], provenance=facts
    )
