"""How far the intervals can be trusted on this machine: A/A runs, and a slow-down of known size that must be found.

    python tests/bench/noise.py aa --runs 20 --prompts 30 --tokens 64       # how many of 20 intervals contain 1
    python tests/bench/noise.py slowed --share 0.05 --prompts 164           # is a 5 % slow-down found

A benchmark, not a test: run it on an idle machine. Prompts are HumanEval's (the stand-in's without SPECBENCH_DATA).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from specbench.cli import compose
from specbench.run import run


def one(overrides: list[str], folder: str, slowed: float | None = None) -> dict:
    config = compose([*overrides, f"runs_dir={folder}", "measure.power=off"])
    if slowed is not None:
        config.method, config.method_name = {"_target_": "slowed.Slowed", "share": slowed}, "slowed"
        config.allow_targets = ["slowed"]
    return run(config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["aa", "slowed"])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--prompts", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.05)
    options = parser.parse_args()
    common = [
        "method=autoregressive",
        "data=humaneval",
        f"data.limit={options.prompts}",
        f"decoding.max_new_tokens={options.tokens}",
        f"measure.repeats={options.repeats}",
    ]
    with tempfile.TemporaryDirectory() as folder:
        if options.what == "slowed":
            speedup = one(common, folder, options.share)["speedup"]
            lo, hi = speedup["ci95"]
            print(
                f"slowed by {options.share:.1%}: speed-up {speedup['ratio_of_totals']:.4f} [{lo:.4f}, {hi:.4f}], "
                f"expected {1 / (1 + options.share):.4f}, {'found' if hi < 1 else 'NOT found'}"
            )
            return
        contains = 0
        for seed in range(options.runs):
            speedup = one([*common, "measure.mode=aa", f"measure.seed={seed}", f"data.seed={seed}"], folder)["speedup"]
            lo, hi = speedup["ci95"]
            contains += lo <= 1 <= hi
            print(f"seed {seed}: {speedup['ratio_of_totals']:.4f} [{lo:.4f}, {hi:.4f}]{'' if lo <= 1 <= hi else '  misses 1'}")
        print(f"{contains} of {options.runs} intervals contain 1")


if __name__ == "__main__":
    main()
