"""What a second process costs the first: a target's forwards alone, beside an idle draft process, and beside one that drafts.

    python tests/bench/overlap.py [--turns 5] [--seconds 0.5] [--rows 1 5] [name=value ...]

Run it on a machine that does nothing else; name=value are options of `python -m specbench` (pair, engine). Every turn measures
all three states, and the target has the cores that a run would give it. A table is printed, and one JSON line: medians
over turns of a forward's milliseconds. What is above 1 in the last column is shared caches, bandwidth and clocks: the two
processes have no core in common where there are two.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from specbench.check.__main__ import configured_bench
from specbench.check.bench import GREEDY
from specbench.config.compose import compose
from specbench.engine.target import open_target
from specbench.parts.schedules.calibration import CONTEXT, Calibration, forward_timer
from specbench.processes.placement import split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 5])
    given, options = parser.parse_known_args()
    bench = configured_bench(compose(["method=amusd", *options], pair="builtin"))
    runtime = bench.runtime(GREEDY)
    place = split(runtime.pair.target.device, runtime.pair.draft.device)[0]
    found: dict[tuple[str, int], list[float]] = {}
    for _ in range(given.turns):
        session = open_target(runtime.target)
        for rows in given.rows:
            with place.applied():
                took = forward_timer(session, Calibration(CONTEXT, given.seconds, rows))()
            found.setdefault(("alone", rows), []).append(took)
        schedule = bench.method(GREEDY).schedule  # starts the worker
        for rows in given.rows:
            found.setdefault(("idle worker", rows), []).append(schedule.alone(given.seconds, rows))
            found.setdefault(("drafting worker", rows), []).append(schedule.beside(given.seconds, rows)[0])
        bench.drop(GREEDY).close()
    print(f"{'target forward':18}{'rows':>6}{'ms':>10}{'over alone':>12}")
    said = []
    for (state, rows), times in sorted(found.items(), key=lambda item: item[0][1]):
        took, alone = statistics.median(times), statistics.median(found["alone", rows])
        print(f"{state:18}{rows:6}{1e3 * took:10.3f}{took / alone:12.3f}")
        said.append({"state": state, "rows": rows, "milliseconds": 1e3 * took, "over_alone": took / alone})
    print(json.dumps({"turns": given.turns, "states": said}))


if __name__ == "__main__":
    main()
