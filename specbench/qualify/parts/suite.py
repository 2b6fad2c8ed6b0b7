"""The tests that only an accelerator can run, out of the checkout's own suite."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import specbench
from specbench.processes.child import run_module
from specbench.qualify.plan import FAILED, NOT_RUN, PASSED, Task, result

KEPT_LINES = 3  # of a failure


def run(task: Task) -> dict[str, Any]:
    """pytest -m gpu, its counts and the failures."""
    root = Path(specbench.__file__).resolve().parents[1]
    if not (root / "tests" / "test_cuda_run.py").is_file():
        return result(NOT_RUN, "an installed wheel has no tests: run this from a checkout")
    report = task.out / "suite.xml"
    report.unlink(missing_ok=True)
    arguments = ["pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={report}", f"--rootdir={root}"]
    status = run_module(
        [*arguments, "-c", str(root / "pyproject.toml"), str(root / "tests")],
        output=sys.stdout,
        timeout_seconds=max(1.0, task.left - 5),
    )
    if status is None:
        return result(FAILED, f"not through within {task.seconds:.0f} s; suite.log says how far it came")
    ended = f"pytest ended with status {status}"
    if not report.is_file():
        return result(FAILED, f"{ended} and left no report; suite.log has what it said")
    return judge(ElementTree.parse(report).getroot(), ended)


def judge(report: ElementTree.Element, ended: str) -> dict[str, Any]:
    """From pytest's XML: passed only if something ran and nothing failed."""
    passed, skipped, failed = [], [], []
    for case in report.iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        problem = case.find("failure") if case.find("failure") is not None else case.find("error")
        if problem is not None:
            failed.append((name, " ".join((problem.get("message") or "").split())[:300]))
        elif (skip := case.find("skipped")) is not None:
            skipped.append((name, skip.get("message") or ""))
        else:
            passed.append(name)
    counts = f"{len(passed)} passed, {len(failed)} failed, {len(skipped)} skipped"
    tables = [{"title": "Failures", "columns": ("test", "what it says"), "rows": failed}] if failed else []
    notes = sorted({f"skipped: {why}" for _, why in skipped})
    if not passed and not failed:
        return result(NOT_RUN, f"{counts}; {ended}", tables=tables, notes=notes)
    return result(FAILED if failed else PASSED, counts, tables=tables, notes=notes)
