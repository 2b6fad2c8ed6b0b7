"""`python -m specbench.isolated <options of one run>`: one job of a sweep in a process of its own (see specbench.launcher).

The same front door as `python -m specbench`, with two additions: the process ends with the sweep that started it, and the last
thing it said on stderr is left in the file that SPECBENCH_OUTCOME names.
"""

from __future__ import annotations

import json
import os
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


if __name__ == "__main__":  # a worker process imports this module again, and must not run it
    import sys

    sys.exit(main())
