"""How long a report takes, and how much memory: synthetic runs of about 10,000 rounds each.

    python tests/bench/analysis.py --runs 1000

Goal: 1,000 runs with 10 million rounds become a report in under a minute and 4 GB. A figure for the machine that it runs on,
printed by part; not a test.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from analysis_runs import write_run

from specbench.analysis.read.frames import load
from specbench.analysis.reports.writing import document
from specbench.measure.records import store

SETTINGS = 20  # option values by method and data set


def make(root: Path, num_runs: int) -> int:
    """`num_runs` runs of 5 methods; one of each method and data set is made, the others are copies with another option."""
    methods = ("speculative", "amusd", "pearl", "eagle", "lookup")
    made = data = 0
    while made < num_runs:
        for number, method in enumerate(methods):
            free = method in ("amusd", "pearl")
            made += 1
            first = write_run(
                root, method, f"set{data}", gamma=2 + number, free=free, prompts=range(40), repeats=2, mean_tokens=72,
                categories=("a", "b", "c", "d"), seed=made, when=made, resamples=10_000,
            )  # fmt: skip
            for setting in range(1, SETTINGS):
                if made < num_runs:
                    made += 1
                    copy_of(first, setting, made)
            if made >= num_runs:
                break
        data += 1
    return made


def copy_of(folder: Path, setting: int, number: int) -> None:
    target = folder.with_name(f"{folder.name}-{setting}")
    shutil.copytree(folder, target)
    path = target / store.RUN_FILE
    run = json.loads(path.read_text())
    run["config"]["method"]["setting"] = setting
    path.write_text(json.dumps(run))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "runs"
        print(f"making {options.runs} runs ...", flush=True)
        make(root, options.runs)
        size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
        before = (time.perf_counter(), time.process_time())
        frames = load([root])
        loaded = (time.perf_counter(), time.process_time())
        doc = document(frames)
        built = (time.perf_counter(), time.process_time())
        doc.save(Path(folder) / "report", workers=os.cpu_count() or 1)
        saved = (time.perf_counter(), time.process_time())
        for name, start, end in (("load", before, loaded), ("build", loaded, built), ("save", built, saved)):
            print(f"{name:6} {end[0] - start[0]:7.1f} s wall {end[1] - start[1]:7.1f} s processor")
        own, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        used = saved[1] - before[1] + others.ru_utime + others.ru_stime
        peak = f"{own.ru_maxrss / 2**20:.2f} GiB, of a process that saves figures {others.ru_maxrss / 2**20:.2f} GiB"
        print(f"total  {saved[0] - before[0]:7.1f} s wall {used:7.1f} s processor with all processes, peak memory {peak}")
        print(f"{len(frames.runs):,} runs, {len(frames.samples):,} samples, {len(frames.rounds):,} rounds, {size >> 20:,} MiB")


if __name__ == "__main__":
    main()
