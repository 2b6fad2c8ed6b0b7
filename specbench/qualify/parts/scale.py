"""Methods on models of 8 and 1 billion parameters whose agreement is set: what each makes of the same acceptance."""

from __future__ import annotations

from typing import Any

from specbench.config.paths import CONF_DIR
from specbench.qualify.plan import FAILED, NOT_RUN, PASSED, Task, result
from specbench.qualify.runs import SPEEDUP_COLUMNS, on_device, run_specbench, speedup_row

METHODS = ("speculative", "amusd", "ssd", "pearl", "sequoia", "specinfer", "dyspec")
ACCEPTANCES = (0.8, 0.6, 0.9)
SHORT = ["data=humaneval", "data.source=standin", "data.limit=6", "measure.repeats=1", "measure.warmup=1", "measure.power=off"]


def run(task: Task) -> dict[str, Any]:
    """Failed where a run does not end, or its ids are not autoregression's."""
    target, draft, tokens = ("8b", "1b", 192) if task.on_accelerator else ("tiny", "tiny", 64)
    there = {path.stem for path in (CONF_DIR / "method").glob("*.yaml")}
    jobs = [(method, 0.8) for method in METHODS if method in there] + [("speculative", a) for a in ACCEPTANCES[1:]]
    rows, bad, good = [], 0, 0
    for number, (method, acceptance) in enumerate(jobs):
        names = [f"pair.target=shaped:{target}", f"pair.draft=shaped:{draft}:{acceptance}", f"decoding.max_new_tokens={tokens}"]
        share = task.left / (len(jobs) - number)
        done = run_specbench(
            task,
            f"scale-{method}-{acceptance}",
            [f"method={method}", *names, *SHORT, *on_device(task)],
            max(share, 90.0) if task.left > 90 else task.left,
        )
        task.say(f"{method} at {acceptance}: {done.why or 'done'}")
        rows.append(speedup_row(f"{method}, draft right at {acceptance:.0%}", done))
        bad += done.reached and not done.identical
        good += done.identical
    status = FAILED if bad else PASSED if good else NOT_RUN
    verdict = f"{good} of {len(jobs)} runs ended with autoregression's ids (shaped:{target} and shaped:{draft}), {bad} did not"
    return result(status, verdict, tables=[{"columns": SPEEDUP_COLUMNS, "rows": rows}])
