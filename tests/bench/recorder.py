"""What the recorder itself costs, as a share of decode time: stamps inside the loop, and writing after the clock has stopped.

    python tests/bench/recorder.py [--prompts 10] [--tokens 64] [--repeats 5]

Autoregressive decoding is the worst case: one token per round. The loop is run with real stamps and with stamps that cost
nothing, alternating; the difference is what recording adds to decode time. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from typing import Any

from specbench import data
from specbench.config.schema import DataConfig, PairConfig
from specbench.engine.request import Request
from specbench.engine.runtime import Runtime
from specbench.engine.sampling import SamplingLaw, noise_key
from specbench.measure.records.store import RunStore
from specbench.methods.chains.autoregressive import Autoregressive
from specbench.pair import load as pair
from specbench.parts.schedules import sequential as decode
from specbench.processes.placement import Placement
from specbench.run.arms import Arm


class CountingClock:
    """Stamps that count up: no look at any clock."""

    def __init__(self) -> None:
        self._count = itertools.count()

    def stamp(self) -> float:
        return float(next(self._count))

    def seconds(self, stamps: list[Any]) -> list[float]:
        return [stamp - stamps[0] for stamp in stamps]

    def synchronize(self) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()

    spec = pair.specify(PairConfig(target="builtin:target"))
    tokenizer = pair.load_tokenizer(spec.target)
    spec = pair.check_pair(spec, tokenizer)
    target = pair.load_model(spec.target, spec.vocab_size)
    runtime = Runtime(spec, target, None, SamplingLaw(), options.tokens, frozenset())
    method = Autoregressive()
    method.open(runtime)
    arm = Arm("method", method, "cpu", Placement((), 1))
    samples = data.load(DataConfig(source="standin")).samples[: options.prompts]
    requests = [
        Request(
            s.sample_id,
            0,
            tuple(data.render(s, 0, (), tokenizer, "raw")),
            options.tokens,
            frozenset(),
            noise_key(0, s.sample_id, 0),
        )
        for s in samples
    ]
    host_clock = decode.clock_for
    shares, write_shares = [], []
    with tempfile.TemporaryDirectory() as folder, RunStore.create(folder, "autoregressive", "bench", {}) as store:
        for repeat in range(-1, options.repeats):
            seconds = {True: 0.0, False: 0.0}
            writing = 0.0
            for index, request in enumerate(requests):
                for real in (True, False) if (index + repeat) % 2 else (False, True):
                    decode.clock_for = host_clock if real else lambda device: CountingClock()
                    start = time.perf_counter()
                    record, rounds = arm.run(request, repeat=repeat, order=0, category=None)
                    seconds[real] += time.perf_counter() - start
                    if real and repeat >= 0:
                        start = time.perf_counter()
                        store.append(record, rounds)
                        writing += time.perf_counter() - start
            if repeat >= 0:  # the first pass warms up
                shares.append(seconds[True] / seconds[False] - 1)
                write_shares.append(writing / seconds[True])
    decode.clock_for = host_clock
    cost = statistics.median(shares)
    print(f"stamps add {cost:+.2%} to decoding (repeats: {', '.join(f'{s:+.2%}' for s in shares)}); goal: under 1 %")
    print(f"writing after the clock has stopped takes {statistics.median(write_shares):.2%} of decode time")


if __name__ == "__main__":
    main()
