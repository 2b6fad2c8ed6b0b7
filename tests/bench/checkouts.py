"""Two checkouts side by side: is decoding as fast in one as in the other?

    python tests/bench/checkouts.py OLD NEW [--turns 40] [--methods speculative,hydra ...]      on an idle machine

Each checkout has one process (with its own `.venv`) that stays, with every method open on the built-in pair. A turn decodes one
prompt with one method in both, right after each other, in an order that is drawn anew, so that the machine's drift falls on
both. Reported by method: the median over turns of the ratio OLD / NEW of decode seconds (above 1: NEW is faster), with its
quartiles. The output ids must be equal. What is chosen by measurement is fixed, so that both do the same work.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
from pathlib import Path

METHODS = {
    "autoregressive": [],
    "speculative": [],
    "hydra": ["method.num_nodes=9"],
    "eagle": ["method.num_nodes=8", "method.draft_length=4"],
    "amusd": [],
}
TOKENS = 64
# Runs in either checkout: the rooms have moved between them.
CHILD = """
import json, sys
import torch
try:
    from specbench.config.compose import compose
    from specbench.config.schema import PairConfig
    from specbench.engine.request import Request
    from specbench.method import create_method
    from specbench.pair.load import check_pair, draft_loader, eos_ids, load_model, load_tokenizer
    from specbench.pair.spec import specify
except ImportError:
    from specbench.cli import compose
    from specbench.engine.runtime import Request
    from specbench.pair import check_pair, eos_ids, load_model, load_tokenizer, specify
    from specbench.plugins import create_method
    from specbench.schema import PairConfig
    draft_loader = None
from specbench.engine.runtime import Runtime
from specbench.engine.sampling import SamplingLaw, noise_key
from pathlib import Path
torch.set_num_threads(1)
pair = specify(PairConfig("builtin", "builtin:target", "builtin:draft"))
tokenizer = load_tokenizer(pair.target)
pair = check_pair(pair, tokenizer)
target, draft = load_model(pair.target, pair.vocab_size), load_model(pair.draft, pair.draft_vocab_size)
more = {} if draft_loader is None else {"load_draft": draft_loader(pair)}
runtime = Runtime(pair, target, draft, SamplingLaw(), TOKENS, frozenset(), **more)
prompts = [json.loads(line)["prompt"] for line in (Path("datasets/standin/humaneval.jsonl")).read_text().splitlines()]
methods = {}
print("ready", flush=True)
for line in sys.stdin:
    name, options, number = json.loads(line)
    if name not in methods:
        methods[name] = create_method(compose([f"method={name}", *options]).method)
        methods[name].open(runtime)
    ids = tuple(tokenizer(prompts[number % len(prompts)]).input_ids)
    outcome = methods[name].decode(Request(str(number), 0, ids, TOKENS, frozenset(), noise_key(0, str(number), 0)))
    print(json.dumps([outcome.decode_seconds, outcome.output_ids]), flush=True)
for method in methods.values():
    method.close()
""".replace("TOKENS", str(TOKENS))


class Checkout:
    """The process of one checkout."""

    def __init__(self, folder: Path):
        python = folder.resolve() / ".venv" / "bin" / "python"
        self.process = subprocess.Popen(
            [str(python), "-c", CHILD], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._line() == "ready\n"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def decode(self, method: str, number: int) -> tuple[float, list[int]]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([method, METHODS[method], number]) + "\n")
        self.process.stdin.flush()
        seconds, ids = json.loads(self._line())
        return seconds, ids

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--methods", default=",".join(METHODS))
    options = parser.parse_args()
    draw, checkouts = random.Random(0), {"old": Checkout(options.old), "new": Checkout(options.new)}
    ratios: dict[str, list[float]] = {name: [] for name in options.methods.split(",")}
    for turn in range(-2, options.turns):  # two turns to warm up
        for method in draw.sample(sorted(ratios), len(ratios)):
            said = {name: checkouts[name].decode(method, max(0, turn)) for name in draw.sample(("old", "new"), 2)}
            if said["old"][1] != said["new"][1]:
                sys.exit(f"{method}, prompt {turn}: the outputs differ")
            if turn >= 0:
                ratios[method].append(said["old"][0] / said["new"][0])
    for checkout in checkouts.values():
        checkout.close()
    for method, values in ratios.items():
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"{method:15} median {middle:.3f}, quartiles {low:.3f} to {high:.3f}, n = {len(values)}")


if __name__ == "__main__":
    main()
