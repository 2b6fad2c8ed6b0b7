"""One job of a sweep in a process of its own: the starting side (`run_isolated`) and the process itself.

`python -m specbench.isolated <options of one run>` is the same front door as `python -m specbench`, with two additions: the
process ends with the sweep that started it, and what it said on stderr is left in the file that SPECBENCH_OUTCOME names.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

OUTCOME_VARIABLE = "SPECBENCH_OUTCOME"


def main() -> int:
    """Run the options in sys.argv; returns the exit status."""
    from specbench import cli
    from specbench.lifeline import end_with_parent

    end_with_parent()
    outcome = os.environ.pop(OUTCOME_VARIABLE, None)  # not for the run's own children
    status = cli.main()
    if outcome is not None:
        Path(outcome).write_text(json.dumps({"said": cli.SAID}))
    return status


def run_isolated(options: Sequence[str], tracebacks: bool = False) -> str | None:
    """One run in a process of its own, to its end, with tracebacks if wanted. Returns None, or what went wrong.

    Ctrl-C reaches the child with the terminal's process group; it is given time to write down that it was interrupted.
    """
    with tempfile.TemporaryDirectory(prefix="specbench-") as folder:
        outcome = Path(folder) / "outcome.json"
        child = subprocess.Popen(
            [sys.executable, "-m", "specbench.isolated", *options],
            stdin=subprocess.PIPE,  # its lifeline: it ends when this process does
            env={**os.environ, OUTCOME_VARIABLE: str(outcome), "HYDRA_FULL_ERROR": "1" if tracebacks else "0"},
        )
        try:
            status = child.wait()
        except BaseException:
            _stop(child)
            raise
        finally:
            if child.stdin is not None:
                child.stdin.close()
        if status == 0:
            return None
        try:
            said = json.loads(outcome.read_text())["said"]
        except (OSError, ValueError):
            said = []
        if said:
            return str(said[-1])
        return f"the job's process died of {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def _stop(child: subprocess.Popen[bytes]) -> None:
    for wait_seconds, stop in ((5.0, lambda: child.send_signal(signal.SIGINT)), (20.0, child.kill)):
        try:
            child.wait(wait_seconds)
            return
        except subprocess.TimeoutExpired:
            stop()
    child.wait()


if __name__ == "__main__":  # a worker process imports this module again, and must not run it
    sys.exit(main())
