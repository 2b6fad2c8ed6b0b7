"""How fast is each backend, beside transformers' own ways to decode? One process, one thread, interleaved, on a pair of models.

    python tests/bench/engines.py --out engines.json
    python tests/bench/engines.py --pair smollm2 --prompts 4 --tokens 48
    python tests/bench/engines.py --identity --data mt_bench --prompts 40
    python tests/bench/engines.py --prompts 1 --tokens 8 --seconds 60 --no-compiled    # whether it runs at all

Not a test: it takes timings, so nothing else may run on the machine. Per repeat and prompt all contenders come one after the
other in random order until --seconds are spent (at most ten minutes with the defaults, compiling included). A figure is
tokens/s over all repeats and prompts, prefill included; a ratio is of the paired seconds, with a 95 % interval over prompts.
Greedy: ids are compared. `target forwards` says whether ours and theirs accepted the same (theirs verifies its first draft in
the prompt's forward). Then: what a forward costs by its rows, and the bytes that it reads beside what the machine can read.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from decode import Contender, ours
from transformers.utils import logging as transformers_logging

from specbench import data
from specbench.config.compose import compose
from specbench.engine.model import Model
from specbench.engine.runtime import Runtime
from specbench.engine.sampling import SamplingLaw
from specbench.engine.target import open_session
from specbench.method import Method
from specbench.methods.chains.autoregressive import Autoregressive
from specbench.methods.chains.speculative import Speculative
from specbench.pair.load import check_pair, eos_ids, load_model, load_tokenizer
from specbench.pair.spec import specify
from specbench.qualify.theirs import generate

BESIDE = {  # ours: what it is compared with
    "native AR": ("eager AR", "generate", "generate, static cache", "generate, compiled"),
    "native speculative": ("native AR", "eager speculative", "assisted generation"),
    "eager AR": ("generate",),
    "eager speculative": ("assisted generation",),
}
ROWS = (1, 2, 3, 5, 9, 16, 32)
CONTEXT = 192


def contenders(options: argparse.Namespace) -> tuple[dict[str, Contender], list[list[int]], dict[str, Model], dict[str, Any]]:
    drawn = [f"data={options.data}", f"data.limit={options.prompts}"]
    config = compose([f"pair={options.pair}", "pair.target_device=cpu", "pair.draft_device=cpu", *drawn])
    spec = specify(config.pair)
    tokenizer = load_tokenizer(spec.target)
    spec = check_pair(spec, tokenizer)
    assert spec.draft is not None
    target, draft = load_model(spec.target, spec.vocab_size), load_model(spec.draft, spec.draft_vocab_size)
    models = {"eager": target, "native": replace(target).run_natively()}
    drafts = {"eager": draft, "native": replace(draft).run_natively()}
    ends = eos_ids(target.module, tokenizer)
    samples = data.select(data.load(config.data), config.data)
    prompts = list(data.first_prompts(samples, config.data.history, tokenizer, config.data.template).values())
    length, module = max(map(len, prompts)) + options.tokens, target.module
    named: dict[str, Contender] = {}
    methods: dict[str, Callable[[], Method]] = {
        "AR": Autoregressive,
        "speculative": lambda: Speculative(draft_length=options.draft_length),
    }
    for backend, model in models.items():
        around = Runtime(spec, model, drafts[backend], SamplingLaw(), options.tokens, ends)
        for name, make in methods.items():
            named[f"{backend} {name}"] = ours(make(), around)
    named["generate"] = generate(module, options.tokens, ends)
    named["generate, static cache"] = generate(module, options.tokens, ends, static_length=length)
    if options.compiled:
        named["generate, compiled"] = generate(module, options.tokens, ends, static_length=length, compiled=True)
    named["assisted generation"] = generate(module, options.tokens, ends, draft=draft.module, draft_length=options.draft_length)
    facts = {"target": spec.target.name, "draft": spec.draft.name, "parameters": target.num_parameters}
    return named, prompts, models, facts


@contextlib.contextmanager
def counted(models: dict[str, Model]) -> Iterator[list[int]]:
    """How often the target's forward runs in here, whoever calls it."""
    count, native = [0], models["native"].native
    handle = models["eager"].module.register_forward_pre_hook(lambda *_: count.__setitem__(0, count[0] + 1))
    kept = native.library.sb_forward

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(library, name)

        def sb_forward(self, shape: int, call: int) -> None:
            count[0] += 1
            kept(shape, call)

    library, native.library = native.library, Counting()
    try:
        yield count
    finally:
        handle.remove()
        native.library = library


def measure(named: dict[str, Contender], prompts: list[list[int]], models: dict[str, Model], options: Any, begin: float) -> Any:
    """Seconds [repeats][prompts] and facts by contender; how many prompts got the same ids from all."""
    facts: dict[str, Any] = {name: {"seconds": [], "forwards": 0, "tokens": []} for name in named}
    agree = 0
    for prompt in prompts:  # also the warm-up, and what compiles
        outputs = {}
        for name, decode in named.items():
            with counted(models) as count:
                outputs[name] = decode(prompt)
            facts[name]["forwards"] += count[0]
            facts[name]["tokens"].append(len(outputs[name]))
        agree += len({tuple(output) for output in outputs.values()}) == 1
    chance, done = random.Random(0), 0
    while done < options.repeats and (done == 0 or time.monotonic() - begin < options.seconds):
        for entry in facts.values():
            entry["seconds"].append([0.0] * len(prompts))
        for index, prompt in enumerate(prompts):
            for name in chance.sample(list(named), len(named)):
                start = time.perf_counter()
                named[name](prompt)
                facts[name]["seconds"][-1][index] = time.perf_counter() - start
        done += 1
    return facts, agree, done


def ratio(mine: Any, other: Any) -> tuple[float, float, float]:
    """How many times as fast, by medians over repeats: of totals, with a 95 % bootstrap interval over prompts."""
    a, b = (np.median(np.array(entry["seconds"]), axis=0) for entry in (mine, other))
    draws = np.random.default_rng(0).integers(0, len(a), (2000, len(a)))
    low, high = np.quantile(b[draws].sum(1) / a[draws].sum(1), (0.025, 0.975))
    return float(b.sum() / a.sum()), float(low), float(high)


def rows(models: dict[str, Model], turns: int = 12, counts: Sequence[int] = ROWS) -> dict[str, dict[int, float]]:
    """Seconds of a forward by backend and rows (chains behind 192 tokens), the lower quartile of interleaved turns."""
    sessions = {name: open_session(model) for name, model in models.items()}
    for session in sessions.values():
        session.start(CONTEXT + max(counts))
        session.feed([(37 * i + 11) % session.model.vocab_size for i in range(CONTEXT)], last_only=True)
    times: dict[tuple[str, int], list[float]] = {(name, n): [] for name in sessions for n in counts}
    chance = random.Random(0)
    gc.collect()
    gc.freeze()  # as in runs
    for turn in range(turns + 2):
        for name, n in chance.sample(list(times), len(times)):
            session = sessions[name]
            ids = [(11 * i + 3) % session.model.vocab_size for i in range(n)]
            start = time.perf_counter()
            session.feed(ids)
            if turn >= 2:
                times[name, n].append(time.perf_counter() - start)
            session.rollback(CONTEXT)
    return {name: {n: statistics.quantiles(times[name, n], n=4)[0] for n in counts} for name in sessions}


def bytes_per_second() -> float:
    """What one thread reads of memory that no cache holds: the best of a few sums over 512 MiB."""
    values = torch.ones(1 << 27)
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        values.sum()
        best = max(best, values.nbytes / (time.perf_counter() - start))
    return best


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", default="builtin", help="a YAML in conf/pair")
    parser.add_argument("--data", default="humaneval", help="a YAML in conf/data")
    parser.add_argument("--identity", action="store_true", help="only whether native gives generate's ids; no timing")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--draft-length", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=420.0, help="no repeat begins after so many seconds")
    parser.add_argument("--no-compiled", dest="compiled", action="store_false", help="leave the compiled generate out")
    parser.add_argument("--out", type=Path, help="also write everything as JSON")
    options = parser.parse_args()
    begin = time.monotonic()
    torch.set_num_threads(options.threads)
    transformers_logging.set_verbosity_error()
    named, prompts, models, facts = contenders(options)
    if options.identity:
        named = {name: named[name] for name in ("generate", "native AR", "native speculative")}
        differ = [number for number, prompt in enumerate(prompts) if len({tuple(run(prompt)) for run in named.values()}) > 1]
        print(
            f"{', '.join(named)}: same ids on {len(prompts) - len(differ)} of {len(prompts)} prompts of {options.data} {differ}"
        )
        return int(bool(differ))
    measured, agree, done = measure(named, prompts, models, options, begin)
    facts |= {"options": {**vars(options), "out": str(options.out)}, "repeats": done, "same_ids": agree}
    print(
        f"{facts['target']} and {facts['draft']}, {options.threads} threads, {len(prompts)} prompts x {options.tokens} tokens, "
        f"draft length {options.draft_length}, {done} repeats; same ids on {agree} of {len(prompts)} prompts"
    )
    print(f"{'':26}{'tokens/s':>10}{'target forwards':>17}")
    for name, entry in measured.items():
        entry["tokens_per_second"] = sum(entry["tokens"]) / float(np.median(np.array(entry["seconds"]), axis=0).sum())
        print(f"{name:26}{entry['tokens_per_second']:10.1f}{entry['forwards']:17}")
    facts["ratios"] = {}
    print(f"\n{'times as fast':26}")
    for mine, others in BESIDE.items():
        for other in others:
            if other in measured:
                facts["ratios"][f"{mine} / {other}"] = found = ratio(measured[mine], measured[other])
                print(f"{mine + ' / ' + other:48}{found[0]:7.2f} [{found[1]:.2f}, {found[2]:.2f}]")
    costs, reading = rows(models), bytes_per_second()
    read = models["native"].native.read_bytes
    facts |= {"contenders": measured, "row_seconds": costs, "read_bytes_per_second": reading, "native_read_bytes": read}
    print(f"\n{'ms a forward, by rows':26}" + "".join(f"{n:9}" for n in ROWS))
    for name, by_rows in costs.items():
        print(f"{name:26}" + "".join(f"{1e3 * by_rows[n]:9.3f}" for n in ROWS))
    share = read / costs["native"][1] / reading
    print(f"\nnative reads {read / 2**20:.1f} MiB a row: {share:.0%} of the {reading / 1e9:.1f} GB/s that one thread can read")
    print(f"{time.monotonic() - begin:.0f} s in all")
    if options.out is not None:
        options.out.write_text(json.dumps(facts, indent=1) + "\n")
    return 0 if agree == len(prompts) else 1


if __name__ == "__main__":
    sys.exit(main())
