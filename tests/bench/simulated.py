"""How far the virtual clock is from this machine: measure its costs, run the schedules, play the same runs again, compare.

    python tests/bench/simulated.py [--seconds 90] [--methods amusd,pearl,ssd] [--data humaneval,mt_bench] [name=value ...]

Run it on a machine that does nothing else; name=value are options of `python -m specbench` for the costs and for every run
(pair, engine, data.limit, decoding.max_new_tokens, measure.repeats). A table is printed, and one JSON line. The exit status is
1 where a simulated speed-up is further than `--percent` from the measured one: 5 is the goal.
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
OF_COSTS = ("pair", "engine")  # what the costs depend on


def said(*arguments: str) -> dict[str, Any]:
    """The JSON document that `python -m ...` ends with. Raises SystemExit with its status where it fails."""
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--methods", default="amusd,pearl,ssd")
    parser.add_argument("--data", default="humaneval,mt_bench")
    parser.add_argument("--percent", type=float, default=5.0)
    parser.add_argument("--costs", type=Path, help="measured before, instead of measuring now")
    given, options = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        own = [option for option in options if option.split("=")[0].split(".")[0] in OF_COSTS]
        costs = str(given.costs or Path(folder) / "costs.json")
        if given.costs is None:
            said("specbench.sim", "measure", f"out={costs}", f"seconds={given.seconds:g}", *own)
        jobs = [(data, method) for data in given.data.split(",") for method in given.methods.split(",")]
        runs = [said("specbench", f"method={method}", f"data={data}", *options) for data, method in jobs]
        checks = said("specbench.sim", "validate", f"devices={costs}", *(run["run_folder"] for run in runs))["runs"]
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
    print(json.dumps({"percent": given.percent, "runs": found}))
    return int(any(abs(line["error_percent"]) > given.percent for line in found))


if __name__ == "__main__":
    sys.exit(main())
