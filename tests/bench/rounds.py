"""What a round costs outside the models' forwards, for every method that works in one process.

    python tests/bench/rounds.py --prompts 4 --tokens 64 --turns 3 [--methods suffix,token_recycling] [--pair smollm2]
        [--engine native] [--context 4096]

Not a test: it takes timings, so nothing else may run on the machine. Every method decodes the same prompts, methods in an
order that goes round; a figure is the median over turns of (decode seconds - seconds inside forwards of target, draft and
their layers) by rounds, and as a share of the decode seconds. `--context`: the prompts' texts, one behind the other, to so
many tokens; the turn that is not counted has 128. Of trained heads the layers that run natively are forwards like a draft
model's; on the eager engine all that they compute counts as outside. Lessons of a draft that learns are training (forwards,
gradients and a step of the optimiser); they are printed beside it. Autoregressive decoding stands first: what every round
costs that drafts nothing. Bound: `--most` milliseconds above it, lessons apart (exit status 1 where one is above).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from specbench.check.table import names
from specbench.config.compose import compose
from specbench.config.options import ConfigError
from specbench.engine.backends.native.linear import NativeLinear
from specbench.engine.backends.native.session import NativeSession
from specbench.engine.request import Request
from specbench.engine.runtime import Runtime
from specbench.engine.sampling import SamplingLaw
from specbench.engine.session import Session
from specbench.method import Method, create_method
from specbench.pair.backend import choose_backend
from specbench.pair.load import check_pair, eos_ids, load_model, load_tokenizer
from specbench.pair.spec import specify
from specbench.parts.schedules.books import Books

STANDIN = Path(__file__).resolve().parents[2] / "datasets" / "standin" / "humaneval.jsonl"
BASE = "autoregressive"


class Inside:
    """Seconds inside forwards since decoding began: those of sessions, whatever part of a model, and of heads' layers."""

    def __init__(self) -> None:
        self.seconds, self.depth = 0.0, 0
        sessions = (
            (Session, ("_call", "exit_logits")),
            (NativeSession, ("_logits", "_run")),
            (NativeLinear, ("__call__", "residual")),
        )
        for kind, calls in sessions:
            for name in calls:
                setattr(kind, name, self.timed(getattr(kind, name)))
        begin = Books.decode

        def begun(books: Books) -> None:
            begin(books)
            self.seconds = 0.0

        Books.decode = begun  # type: ignore[method-assign]

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def wrapper(*given: Any, **named: Any) -> Any:
            self.depth += 1
            start = time.perf_counter()
            try:
                return call(*given, **named)
            finally:
                self.depth -= 1
                if not self.depth:
                    self.seconds += time.perf_counter() - start

        return wrapper


def opened(name: str, around: Runtime) -> Method | None:
    """The method with its own YAML; None for one that starts workers, or needs what this pair has not."""
    method = create_method(compose([f"method={name}"]).method)
    if method.needs.draft == "worker":
        return None
    try:
        method.open(around)
    except ConfigError as error:
        print(f"{name}: left out: {error}", file=sys.stderr)
        return None
    return method


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--pair", default="builtin")
    parser.add_argument("--engine", default="eager")
    parser.add_argument("--methods", default=",".join(names()))
    parser.add_argument("--context", type=int, help="tokens of a prompt; as long as it is if not given")
    parser.add_argument("--most", type=float, default=0.5, help="milliseconds above autoregressive decoding's round")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = compose([f"pair={options.pair}", f"engine={options.engine}"])
    pair = specify(config.pair, config.engine.attention)
    tokenizer = load_tokenizer(pair.target)
    pair, instead = choose_backend(check_pair(pair, tokenizer), config.engine.backend)
    assert instead is None, instead
    target = load_model(pair.target, pair.vocab_size)
    assert pair.draft is not None
    draft = load_model(pair.draft, pair.draft_vocab_size)
    around = Runtime(pair, target, draft, SamplingLaw(), options.tokens, eos_ids(target.module, tokenizer))
    texts = [json.loads(line)["prompt"] for line in STANDIN.read_text().splitlines()[: options.prompts]]
    prompts = [tuple(tokenizer(text)["input_ids"]) for text in texts]
    if options.context:
        whole = [
            token for line in STANDIN.read_text().splitlines() for token in tokenizer(json.loads(line)["prompt"])["input_ids"]
        ]
        whole *= 1 + (options.context + len(texts)) // len(whole)
        prompts = [tuple(whole[number : number + options.context]) for number in range(len(texts))]
    chosen = dict.fromkeys([BASE, *options.methods.split(",")])
    methods = {name: method for name in chosen if (method := opened(name, around)) is not None}
    inside = Inside()
    costs: dict[str, list[float]] = {name: [] for name in methods}
    lessons: dict[str, list[float]] = {name: [] for name in methods}
    shares: dict[str, list[float]] = {name: [] for name in methods}
    for turn in range(-1, options.turns):  # the first is not counted
        order = list(methods)
        order = [*order[turn % len(order) :], *order[: turn % len(order)]]
        for name in order:
            methods[name].reset()
            seconds, rounds, taught, decoding = 0.0, 0, 0.0, 0.0
            for number, ids in enumerate(prompts):
                fed = ids[:128] if options.context and turn < 0 else ids
                request = Request(str(number), 0, fed, options.tokens, around.eos_ids, noise_key=number)
                outcome = methods[name].decode(request)
                learned = sum(done.learn_seconds for done in outcome.rounds)
                seconds += outcome.decode_seconds - inside.seconds - learned
                taught += learned
                decoding += outcome.decode_seconds
                rounds += len(outcome.rounds)
            if turn >= 0:
                costs[name].append(1e3 * seconds / max(1, rounds))
                lessons[name].append(1e3 * taught / max(1, rounds))
                shares[name].append((seconds + taught) / decoding)
    base = statistics.median(costs[BASE])
    dear = []
    for name, values in costs.items():
        above = statistics.median(values) - base
        beside = f", {learned:.3f} of lessons" if (learned := statistics.median(lessons[name])) else ""
        share = f"{statistics.median(shares[name]):6.1%} of decoding{beside}"
        print(f"{name:16} {statistics.median(values):7.3f} ms a round outside forwards, {above:+7.3f} beside {BASE}, {share}")
        dear += [name] if above > options.most else []
    found = {"milliseconds": costs, "lessons": lessons, "shares": shares}
    medians = {what: {name: statistics.median(values) for name, values in of.items()} for what, of in found.items()}
    print(json.dumps({**medians, "above": dear}))
    return 1 if dear else 0


if __name__ == "__main__":
    sys.exit(main())
