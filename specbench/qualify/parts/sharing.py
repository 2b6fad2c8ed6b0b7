"""Draft and target on one device, in two processes: with and without NVIDIA's multi-process service (MPS)."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any

from specbench.qualify.plan import FAILED, NOT_RUN, PASSED, Task, result
from specbench.qualify.runs import SPEEDUP_COLUMNS, on_device, run_specbench, speedup_row

DAEMON = "nvidia-cuda-mps-control"
SHORT = ["data=humaneval", "data.source=standin", "data.limit=4", "measure.repeats=1", "measure.warmup=1", "measure.power=off"]


def run(task: Task) -> dict[str, Any]:
    """AMUSD on one device without and, where its daemon can be started, with MPS. Without it kernels of both take turns."""
    target, draft, tokens = ("8b", "1b", 128) if task.on_accelerator else ("tiny", "tiny", 48)
    names = [f"pair.target=shaped:{target}", f"pair.draft=shaped:{draft}:0.8", f"decoding.max_new_tokens={tokens}"]
    overrides = ["method=amusd", *names, *SHORT, *on_device(task)]
    alone = run_specbench(task, "sharing-alone", overrides, task.left / 2)
    rows, notes = [speedup_row("amusd, MPS off", alone)], []
    if not task.on_accelerator:
        notes.append("MPS is for CUDA devices")
    elif shutil.which(DAEMON) is None:
        notes.append(f"MPS: {DAEMON} is not on this machine")
    else:
        with mps() as (environment, why):
            if why is not None:
                notes.append(f"MPS: {why}")
            else:
                rows.append(
                    speedup_row("amusd, MPS on", run_specbench(task, "sharing-mps", overrides, task.left - 5, environment))
                )
    table = {"columns": SPEEDUP_COLUMNS, "rows": rows}
    if alone.summary is None:
        return result(FAILED if alone.reached else NOT_RUN, alone.why or "", tables=[table], notes=notes)
    verdict = "; ".join(f"{row[0]}: {row[1]}" for row in rows)
    return result(PASSED if alone.identical else FAILED, verdict, tables=[table], notes=notes)


@contextlib.contextmanager
def mps() -> Iterator[tuple[dict[str, str], str | None]]:
    """The service with a folder of its own: (environment for its clients, why it could not be started). Gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="specbench-mps-") as folder:  # short: sockets have a limit of 107 characters
        environment = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        whole = {**os.environ, **environment}
        try:
            begun = subprocess.run([DAEMON, "-d"], env=whole, capture_output=True, text=True, timeout=20, check=False)
            yield environment, None if begun.returncode == 0 else f"{DAEMON} -d: {begun.stderr.strip() or begun.returncode}"
        finally:
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run([DAEMON], env=whole, input="quit\n", capture_output=True, text=True, timeout=20, check=False)
