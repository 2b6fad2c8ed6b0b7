"""Two checkouts side by side: is decoding as fast in one as in the other?

    python tests/bench/checkouts.py OLD NEW [--turns 5] [--methods speculative,hydra ...]      on an idle machine

Every turn runs each method once in each checkout, in processes of their own, in an order that is drawn anew; a run measures the
method and its autoregressive baseline on the same prompts. Reported: the median over turns of the ratio NEW / OLD of tokens per
second, with the smallest and the largest ratio. Each checkout uses the environment `.venv` in it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import tempfile
from pathlib import Path

METHODS = {  # what is chosen by measurement is fixed: the same work in both
    "speculative": [],
    "hydra": ["method.num_nodes=9"],
    "eagle": ["method.num_nodes=8", "method.draft_length=4"],
    "amusd": [],
}
OPTIONS = [
    *("data=humaneval", "data.source=standin", "decoding.max_new_tokens=64", "measure.power=off"),
    *("measure.repeats=2", "measure.warmup=1", "engine.threads=1", "device_lock=off"),
]


def tokens_per_second(checkout: Path, method: str, limit: int) -> tuple[float, float]:
    """Of the method and of the baseline."""
    with tempfile.TemporaryDirectory() as folder:
        options = [f"method={method}", *METHODS[method], *OPTIONS, f"data.limit={limit}", f"run_folder={folder}/run"]
        python = checkout / ".venv" / "bin" / "python"
        done = subprocess.run(
            [str(python), "-m", "specbench", *options],
            cwd=checkout,
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["lossless"]["verdict"] in ("identical", "numerical_tie"), summary["lossless"]
    return summary["decode_tokens_per_second"], summary["baseline_decode_tokens_per_second"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--limit", type=int, default=6)
    parser.add_argument("--methods", default=",".join(METHODS))
    options = parser.parse_args()
    draw = random.Random(0)
    ratios: dict[str, list[float]] = {}
    for _ in range(options.turns):
        for method in draw.sample(options.methods.split(","), len(options.methods.split(","))):
            rates = {}
            for name in draw.sample(("old", "new"), 2):
                rates[name] = tokens_per_second(getattr(options, name).resolve(), method, options.limit)
            ratios.setdefault(method, []).append(rates["new"][0] / rates["old"][0])
            ratios.setdefault("autoregressive", []).append(rates["new"][1] / rates["old"][1])
            print(f"{method}: {ratios[method][-1]:.3f}, its baseline: {ratios['autoregressive'][-1]:.3f}", flush=True)
    for method, values in sorted(ratios.items()):
        print(f"{method:15} median {statistics.median(values):.3f}, {min(values):.3f} to {max(values):.3f}, n = {len(values)}")


if __name__ == "__main__":
    main()
