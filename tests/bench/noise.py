"""How far the intervals can be trusted on this machine: A/A runs, and a slow-down of known size that must be found.

    python tests/bench/noise.py aa          # of 20 intervals of the baseline against itself at least 17 contain 1
    python tests/bench/noise.py slowed      # a 5 % slow-down of one arm is found with 164 prompts x 3 repeats

A benchmark, not a test: run it on an idle machine (the runs say so if it was not). Seeds count up from 0 and choose the order
of the arms and, where there are more prompts than asked for, the prompts. Prompts are HumanEval's with SPECBENCH_DATA, else the
stand-in's 27. Outputs are short, so that 20 runs take about six minutes and the slow-down three where the target decodes 250
tokens a second. Both arms have one thread: what the warm-up would choose is no part of the question. Exit status 1: not shown.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from specbench.config.compose import compose
from specbench.run.run import run

NEEDED_SHARE = 17 / 20  # of A/A intervals that contain 1


def one(overrides: list[str], folder: str, slowed: float | None = None) -> dict[str, Any]:
    """The summary of one run; its progress is swallowed."""
    config = compose([*overrides, f"runs_dir={folder}", "measure.power=off"])
    if slowed is not None:
        config.method, config.method_name = {"_target_": "slowed.Slowed", "share": slowed}, "slowed"
        config.allow_targets = ["slowed"]
    with contextlib.redirect_stderr(io.StringIO()):
        return run(config)


def disturbed(summary: dict[str, Any]) -> str:
    """The run's own words about neighbours, throttling and drift."""
    words = ("other processes", "another run", "throttled", "warmed", "drift")
    found = [text for text in summary["warnings"] if any(word in text for word in words)]
    return f"  ! {'; '.join(found)}" if found else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["aa", "slowed"])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--prompts", type=int, help="aa: 25, slowed: 164")
    parser.add_argument("--tokens", type=int, help="aa: 16, slowed: 32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.05)
    options = parser.parse_args()
    aa = options.what == "aa"
    common = [
        "method=autoregressive",
        "pair=builtin",
        "engine=eager",
        "data=humaneval",
        f"data.limit={options.prompts or (25 if aa else 164)}",
        f"decoding.max_new_tokens={options.tokens or (16 if aa else 32)}",
        f"measure.repeats={options.repeats}",
        "engine.threads=1",
    ]
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        if not aa:
            summary = one(common, folder, options.share)
            speedup = summary["speedup"]
            lo, hi = speedup["ci95"]
            print(
                f"slowed by {options.share:.1%}, {speedup['num_prompts']} prompts x {speedup['num_repeats']} repeats: speed-up "
                f"{speedup['ratio_of_totals']:.4f} [{lo:.4f}, {hi:.4f}], expected {1 / (1 + options.share):.4f}, "
                f"{'found' if hi < 1 else 'NOT found'}, {time.monotonic() - begin:.0f} s{disturbed(summary)}"
            )
            return 0 if hi < 1 else 1
        contains = 0
        for seed in range(options.runs):
            summary = one([*common, "measure.mode=aa", f"measure.seed={seed}", f"data.seed={seed}"], folder)
            speedup = summary["speedup"]
            lo, hi = speedup["ci95"]
            contains += lo <= 1 <= hi
            told = f"seed {seed}: {speedup['ratio_of_totals']:.4f} [{lo:.4f}, {hi:.4f}]{'' if lo <= 1 <= hi else '  misses 1'}"
            print(told + disturbed(summary), flush=True)
    print(f"{contains} of {options.runs} intervals contain 1, {time.monotonic() - begin:.0f} s")
    return 0 if contains >= NEEDED_SHARE * options.runs else 1


if __name__ == "__main__":
    sys.exit(main())
