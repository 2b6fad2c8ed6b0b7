"""How far the virtual clock is from this machine: measure its costs, run a schedule, measure again, play the run, compare.

    python tests/bench/simulated.py [--seconds 30] [--every 1] [--methods amusd,pearl] [--data humaneval,gsm8k] [name=value ...]

Run it on a machine that does nothing else; name=value are options of `python -m specbench` for the costs and for every run
(pair, engine, data.limit, decoding.max_new_tokens, measure.repeats), rows and contexts of the costs alone. Every run is played
on the costs that were last measured before it and on those first measured behind it, and the mean of both counts, for a
machine's speed drifts; of the run itself nothing is taken but its acceptance, prompts and options. Of a method's runs over
several data sets all prompts count alike. A table is printed, and one JSON line. The exit status is 1 where a simulated
speed-up is further than `--percent` from the measured one: 5 is the goal.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OF_BOTH, OF_COSTS = ("pair", "engine"), ("rows", "contexts")  # what the costs depend on, and what is nothing to a run


def said(*arguments: str) -> dict[str, Any]:
    """The JSON document that `python -m ...` ends with. Raises SystemExit with its status where it fails."""
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--methods", default="speculative,amusd,pearl,ssd")
    parser.add_argument("--data", default="humaneval,mt_bench")
    parser.add_argument("--every", type=int, default=1, help="measure the costs anew behind so many runs")
    parser.add_argument("--percent", type=float, default=5.0)
    parser.add_argument("--costs", type=Path, help="a folder where the costs are left")
    given, options = parser.parse_known_args()
    of = {option: option.split("=")[0].split(".")[0] for option in options}
    own = [option for option in options if of[option] in OF_BOTH + OF_COSTS]
    options = [option for option in options if of[option] not in OF_COSTS]
    jobs = [(data, method) for data in given.data.split(",") for method in given.methods.split(",")]
    runs, checks = [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.costs or temporary
        measuring = ["specbench.sim", "measure", f"seconds={given.seconds:g}", f"methods={given.methods}", *own]
        costs = [said(*measuring, f"out={folder}/0.json")["costs"]]
        for number, (data, method) in enumerate(jobs, 1):
            runs.append(said("specbench", f"method={method}", f"data={data}", *options))
            if number % given.every == 0 or number == len(jobs):
                costs.append(said(*measuring, f"out={folder}/{len(costs)}.json")["costs"])
        for number, run in enumerate(runs):
            validating = ["specbench.sim", "validate", run["run_folder"]]
            before, behind = (said(*validating, f"devices={one}")["runs"][0] for one in costs[number // given.every :][:2])
            checks.append({key: (value + behind[key]) / 2 if "simulated" in key else value for key, value in before.items()})
            checks[-1]["each"] = [one["simulated_baseline_seconds"] / one["simulated_seconds"] for one in (before, behind)]
    found = []
    print(f"{'data':14}{'method':14}{'simulated':>10}{'measured':>10}{'interval':>18}{'error %':>9}{'rounds %':>9}")
    for (data, method), run, check in zip(jobs, runs, checks, strict=True):
        measured = check["baseline_seconds"] / check["seconds"]
        simulated = check["simulated_baseline_seconds"] / check["simulated_seconds"]
        low, high = run["speedup"]["ci95"]
        error, rounds = 100 * (simulated / measured - 1), 100 * (check["simulated_rounds"] / check["rounds"] - 1)
        between = f"{low:.3f} to {high:.3f}"
        print(f"{data:14}{method:14}{simulated:10.3f}{measured:10.3f}{between:>18}{error:9.1f}{rounds:9.1f}")
        line = {"data": data, "method": method, "simulated": simulated, "measured": measured, "ci95": [low, high]}
        found.append({**line, "error_percent": error, **check})
    pooled = {}
    for method in dict.fromkeys(method for _, method in jobs):
        own = [check for (_, other), check in zip(jobs, checks, strict=True) if other == method]
        measured, simulated = (
            sum(check[f"{of}baseline_seconds"] for check in own) / sum(check[f"{of}seconds"] for check in own)
            for of in ("", "simulated_")
        )
        pooled[method] = 100 * (simulated / measured - 1)
        print(f"{'all':14}{method:14}{simulated:10.3f}{measured:10.3f}{'':>18}{pooled[method]:9.1f}")
    print(json.dumps({"percent": given.percent, "error_percent": pooled, "runs": found}))
    return int(any(abs(error) > given.percent for error in pooled.values()))


if __name__ == "__main__":
    sys.exit(main())
