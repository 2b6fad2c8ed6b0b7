"""The pairs that need no download, with weights that were trained: the built-in one and SmolLM2."""

from __future__ import annotations

from typing import Any

from specbench.qualify.plan import FAILED, NOT_RUN, PASSED, Task, result
from specbench.qualify.runs import SPEEDUP_COLUMNS, on_device, run_specbench, speedup_row

JOBS = [(pair, method) for method in ("speculative", "amusd", "eagle", "hydra") for pair in ("builtin", "smollm2")]
SHORT = ["data=humaneval", "data.source=standin", "data.limit=4", "measure.repeats=1", "measure.warmup=1", "measure.power=off"]
MISSING = ("is not installed", "heads", "takes the package gguf")  # a pair without its package, a method without its heads


def run(task: Task) -> dict[str, Any]:
    """Failed where a run does not end, or its ids are not autoregression's; what is not installed is named."""
    rows, bad, good = [], 0, 0
    for number, (pair, method) in enumerate(JOBS):
        seconds = max(task.left / (len(JOBS) - number), min(60.0, task.left))
        overrides = [f"pair={pair}", f"method={method}", "decoding.max_new_tokens=64", *SHORT, *on_device(task)]
        done = run_specbench(task, f"pairs-{pair}-{method}", overrides, seconds)
        task.say(f"{pair}, {method}: {done.why or 'done'}")
        rows.append(speedup_row(f"{method}, {pair}", done))
        missing = done.why is not None and any(words in done.why for words in MISSING)
        bad += done.reached and not done.identical and not missing
        good += done.identical
    status = FAILED if bad else PASSED if good else NOT_RUN
    verdict = f"{good} of {len(JOBS)} runs ended with autoregression's ids, {bad} did not"
    return result(status, verdict, tables=[{"columns": SPEEDUP_COLUMNS, "rows": rows}])
