"""One job of a sweep in a process of its own.

`python -m specbench.front.isolated <options of one run>` is the same front door as `python -m specbench`, with two additions:
the process ends with the sweep that started it (`launchers.run_isolated`), and what it said on stderr is left in the file whose
descriptor SPECBENCH_OUTCOME holds.
"""

from __future__ import annotations

import json
import os
import sys

from specbench.front import cli
from specbench.front.launchers import OUTCOME_VARIABLE
from specbench.processes.child import end_with_parent


def main() -> int:
    """Run the options in sys.argv; returns the exit status."""
    end_with_parent()
    outcome = os.environ.pop(OUTCOME_VARIABLE, None)  # neither is for the run's own children
    if outcome is not None:
        os.set_inheritable(int(outcome), False)
    said: list[str] = []
    status = cli.main(said)
    if outcome is not None:
        with open(int(outcome), "w", encoding="utf-8") as file:
            json.dump({"said": said}, file)
    return status


if __name__ == "__main__":  # a worker process imports this module again, and must not run it
    sys.exit(main())
