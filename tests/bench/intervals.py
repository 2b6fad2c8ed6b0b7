"""How long the statistics take: every estimator, interval and warning of many methods on one data set, from the records.

    python tests/bench/intervals.py --prompts 500 --repeats 5 --methods 12

Goal: under 5 seconds. Times are of the processor (one thread), so that other work on the machine does not enter.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import numpy as np

from specbench.measure import pairing, stats
from specbench.measure.records.events import SampleRecord


def records(prompts: int, repeats: int, seed: int) -> Iterator[SampleRecord]:
    """Both arms of one run: 13 categories, lengths of 20 to 200 tokens, noise of 2 %."""
    rng = np.random.default_rng(seed)
    tokens, order = rng.integers(20, 200, prompts), 0
    for repeat in range(repeats):
        for prompt in range(prompts):
            for arm, rate in (("method", 1 / 150), ("baseline", 1 / 100)):
                yield SampleRecord(
                    sample_id=f"p/{prompt}",
                    turn=0,
                    repeat=repeat,
                    arm=arm,
                    order=order,
                    category=f"c{prompt % 13}",
                    prompt_ids=(1, 2, 3),
                    output_ids=tuple(range(tokens[prompt] + 1)),
                    finish_reason="length",
                    prefill_seconds=0.01,
                    decode_seconds=float(tokens[prompt] * rate * np.exp(0.02 * rng.standard_normal())),
                    num_emitted=int(tokens[prompt]),
                    num_rounds=int(tokens[prompt]),
                )
                order += 1


def seconds_of(prompts: int, repeats: int, methods: int) -> float:
    """Processor seconds from records to speed-ups, intervals and warnings."""
    runs = [list(records(prompts, repeats, seed)) for seed in range(methods)]
    begin = time.process_time()
    for seed, samples in enumerate(runs):
        pairs = pairing.pair_samples(samples)
        speedup = stats.paired_speedup(pairs, seed=seed)
        stats.warnings_for(samples, pairs)
        assert speedup.num_prompts == prompts and speedup.resamples == stats.RESAMPLES
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--methods", type=int, default=12)
    options = parser.parse_args()
    spent = seconds_of(options.prompts, options.repeats, options.methods)
    print(
        f"{options.prompts} prompts x {options.repeats} repeats x {options.methods} methods: {spent:.2f} s of processor time"
        f" ({'under' if spent < 5 else 'NOT under'} 5 s)"
    )


if __name__ == "__main__":
    main()
