"""Is the harness slower than what it measures? Our decoding beside transformers' own, in one process, on the built-in pair.

    python tests/bench/decode.py --prompts 6 --tokens 64 --repeats 7

Not a test: it takes timings, so nothing else may run on the machine. Per repeat and prompt the four contenders come one after
the other in random order; a figure is the median over repeats of tokens/s over all prompts, prefill included (transformers does
not tell it apart), with the lowest and highest repeat. Greedy, so that all four must give the same ids: they are compared.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from specbench.config.schema import PairConfig
from specbench.engine.request import Request
from specbench.engine.runtime import Runtime
from specbench.engine.sampling import SamplingLaw
from specbench.method import Method
from specbench.methods.chains.autoregressive import Autoregressive
from specbench.methods.chains.speculative import Speculative
from specbench.pair.load import check_pair, eos_ids, load_model, load_tokenizer
from specbench.pair.spec import specify
from specbench.qualify.theirs import generate

STANDIN = Path(__file__).resolve().parents[2] / "datasets" / "standin" / "humaneval.jsonl"
PAIRS = {  # ours: theirs
    "autoregressive": "generate",
    "speculative": "assisted generation",
}

Contender = Callable[[Sequence[int]], list[int]]


def ours(method: Method, around: Runtime) -> Contender:
    method.open(around)

    def decode(prompt: Sequence[int]) -> list[int]:
        request = Request("0", 0, tuple(prompt), around.max_new_tokens, around.eos_ids, noise_key=0)
        return method.decode(request).output_ids

    return decode


def contenders(options: argparse.Namespace) -> tuple[dict[str, Contender], list[list[int]]]:
    device = options.device
    spec = specify(PairConfig(target=options.target, draft=options.draft, target_device=device, draft_device=device))
    tokenizer = load_tokenizer(spec.target)
    spec = check_pair(spec, tokenizer)
    assert spec.draft is not None
    target, draft = load_model(spec.target, spec.vocab_size), load_model(spec.draft, spec.vocab_size)
    ends = eos_ids(target.module, tokenizer)
    around = Runtime(spec, target, draft, SamplingLaw(), options.tokens, ends)
    prompts = [json.loads(line)["prompt"] for line in STANDIN.read_text().splitlines()[: options.prompts]]
    named = {
        "autoregressive": ours(Autoregressive(), around),
        "generate": generate(target.module, options.tokens, ends),
        "speculative": ours(Speculative(draft_length=options.draft_length), around),
        "assisted generation": generate(
            target.module, options.tokens, ends, draft=draft.module, draft_length=options.draft_length
        ),
    }
    return named, [tokenizer(text).input_ids for text in prompts]


def measure(named: dict[str, Contender], prompts: list[list[int]], repeats: int) -> tuple[dict[str, list[float]], int]:
    """Tokens per second of every repeat, by contender, and the number of prompts on which all gave the same ids."""
    chance = random.Random(0)
    agree = 0
    for prompt in prompts:  # also the warm-up
        outputs = [decode(prompt) for decode in named.values()]
        agree += all(output == outputs[0] for output in outputs)
    rates: dict[str, list[float]] = {name: [] for name in named}
    for _ in range(repeats):
        seconds, tokens = dict.fromkeys(named, 0.0), dict.fromkeys(named, 0)
        for prompt in prompts:
            order = list(named)
            chance.shuffle(order)
            for name in order:
                start = time.perf_counter()
                output = named[name](prompt)
                seconds[name] += time.perf_counter() - start
                tokens[name] += len(output)
        for name in named:
            rates[name].append(tokens[name] / seconds[name])
    return rates, agree


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="builtin:target")
    parser.add_argument("--draft", default="builtin:draft")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--draft-length", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers_logging.set_verbosity_error()
    named, prompts = contenders(options)
    rates, agree = measure(named, prompts, options.repeats)
    print(
        f"{options.target} and {options.draft} on {options.device}, {options.threads} threads, {len(prompts)} prompts x "
        f"{options.tokens} tokens, draft length {options.draft_length}, median of {options.repeats} repeats; "
        f"same ids on {agree} of {len(prompts)} prompts"
    )
    print(f"{'':22}{'tokens/s':>10}{'lowest':>10}{'highest':>10}{'ratio':>9}")
    for mine, other in PAIRS.items():
        for name in (mine, other):
            row = rates[name]
            ratio = statistics.median(a / b for a, b in zip(rates[mine], rates[other], strict=True)) if name == mine else None
            shown = f"{ratio:8.2f}x" if ratio is not None else ""
            print(f"{name:22}{statistics.median(row):10.1f}{min(row):10.1f}{max(row):10.1f}{shown}")
    return 0 if agree == len(prompts) else 1


if __name__ == "__main__":
    sys.exit(main())
