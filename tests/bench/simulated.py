"""How far the virtual clock is from this machine: measure its costs, run a schedule, measure again, play the run, compare.

    python tests/bench/simulated.py [--seconds 30] [--every 1] [--methods amusd,pearl] [--data humaneval,gsm8k] [name=value ...]

Run it on a machine that does nothing else; name=value are options of `python -m specbench` for the costs and for every run
(pair, engine, data.limit, decoding.max_new_tokens, measure.repeats), rows and contexts of the costs alone. Every run is played
on the costs that were last measured before it and on those first measured behind it, and the mean of both counts, for a
machine's speed drifts; of the run itself nothing is taken but its acceptance, prompts and options. Of a method's runs over
several data sets all prompts count alike.

All runs over one data set have the same baseline, token for token, so its seconds in each of them are readings of one quantity,
and their mean, measured and simulated, is a better one. Pairing takes out what moves both arms of a run alike; where baselines
scatter more than the methods' seconds and hardly with them (docs/sim.md), a run's own is noise in its speed-up.
Both errors are printed: with the run's own baseline, and with that of all runs, by which the exit status goes: it is 1 where a
simulated speed-up over all data sets is further than `--percent` from the measured one (5 is the goal). With one method both
are the same. A table is printed, and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
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


Line = dict[str, Any]
NAMES = {  # of what is printed in percent
    "error": "error_percent",
    "all baselines": "all_baselines_error_percent",
    "method's time": "seconds_percent",
    "baseline's": "baseline_seconds_percent",
    "rounds": "rounds_percent",
}


def percent(simulated: float, measured: float) -> float:
    return 100 * (simulated / measured - 1)


def with_all_baselines(runs: Sequence[Line]) -> list[Line]:
    """Each run with the mean baseline, measured and simulated, of all runs over its data set."""
    keys = ("baseline_seconds", "simulated_baseline_seconds")
    return [run | {key: mean(one[key] for one in runs if one["data"] == run["data"]) for key in keys} for run in runs]


def compared(own: Sequence[Line], shared: Sequence[Line]) -> dict[str, float]:
    """Speed-ups of one method, and what is simulated over what is measured. shared: its runs with the baselines of all."""

    def total(key: str, runs: Sequence[Line] = own) -> float:
        return sum(run[key] for run in runs)

    def excess(key: str) -> float:
        return percent(total(f"simulated_{key}"), total(key))

    def speedup(of: str, runs: Sequence[Line]) -> float:
        return total(f"{of}baseline_seconds", runs) / total(f"{of}seconds", runs)

    return {
        "simulated": speedup("simulated_", own),
        "measured": speedup("", own),
        "error_percent": percent(speedup("simulated_", own), speedup("", own)),
        "all_baselines_error_percent": percent(speedup("simulated_", shared), speedup("", shared)),
        **{f"{key}_percent": excess(key) for key in ("seconds", "baseline_seconds", "rounds")},
    }


def say(data: str, method: str, line: Line, interval: str = "") -> None:
    percents = "".join(f"{line[key]:14.1f}" for key in NAMES.values())
    print(f"{data:14}{method:14}{line['simulated']:14.3f}{line['measured']:14.3f}{interval:>14}{percents}")


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
    found = [{"data": data, "method": method, **check} for (data, method), check in zip(jobs, checks, strict=True)]
    errors, shared = dict[str, dict[str, float]](), with_all_baselines(found)
    print(("{:14}{:14}" + "{:>14}" * 8).format("data", "method", "simulated", "measured", "interval", *NAMES))
    for line, other, run in zip(found, shared, runs, strict=True):
        line["ci95"] = run["speedup"]["ci95"]
        line |= compared([line], [other])
        say(line["data"], line["method"], line, "{:.2f} to {:.2f}".format(*line["ci95"]))
    for method in dict.fromkeys(line["method"] for line in found):
        errors[method] = compared(*([one for one in some if one["method"] == method] for some in (found, shared)))
        say("all", method, errors[method])
    print(json.dumps({"percent": given.percent, "methods": errors, "runs": found}))
    return int(any(abs(one["all_baselines_error_percent"]) > given.percent for one in errors.values()))


if __name__ == "__main__":
    sys.exit(main())
