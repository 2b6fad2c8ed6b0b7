"""What a target's forward costs by its rows, on the built-in pair and on SmolLM2: the two regimes in one figure.

    python tests/bench/rows.py --out docs/rows.png

Not a test: it takes timings, so nothing else may run on the machine. Chains behind 192 tokens, one thread; rows and backends of
a pair in random order in every turn, lower quartile. Both panels: seconds of n rows over seconds of one, on native and eager.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from engines import rows

from specbench.analysis.show.style import legend_below, new_figure, series, styled
from specbench.config.compose import compose
from specbench.pair.load import check_pair, load_model, load_tokenizer
from specbench.pair.spec import specify

PAIRS = {"builtin": "built-in target", "smollm2": "SmolLM2-135M"}
ROWS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 28, 32)


def measured(pair: str, turns: int) -> dict[str, dict[int, float]]:
    config = compose([f"pair={pair}", "pair.target_device=cpu", "pair.draft_device=cpu"])
    spec = specify(config.pair)
    spec = check_pair(spec, load_tokenizer(spec.target))
    model = load_model(spec.target, spec.vocab_size)
    return rows({"native": replace(model).run_natively(), "eager": model}, turns, ROWS)


def draw(found: dict[str, dict[str, dict[int, float]]], path: Path) -> None:
    with styled():
        figure, axes = new_figure(1, len(found), sharey=True)
        for axis, (pair, by_backend) in zip(axes[0], found.items(), strict=True):
            for number, (backend, seconds) in enumerate(by_backend.items()):
                relative = [seconds[n] / seconds[1] for n in seconds]
                axis.plot(list(seconds), relative, label=f"{backend} engine", **series(number))
            axis.set_title(f"{PAIRS[pair]}, {1e3 * by_backend['native'][1]:.1f} ms a row (native)")
            axis.set_xlabel("rows of a forward")
        axes[0][0].set_ylabel("time, one row = 1")
        axes[0][0].set_ylim(bottom=0)  # when all is drawn: of a shared axis it fixes the top too
        legend_below(figure)
        figure.savefig(path, metadata={"Software": None})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the figure; the numbers go beside it as JSON")
    parser.add_argument("--turns", type=int, default=24)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {pair: measured(pair, options.turns) for pair in PAIRS}
    options.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    for pair, by_backend in found.items():
        for backend, seconds in by_backend.items():
            print(f"{PAIRS[pair]:18}{backend:8}" + "".join(f"{1e3 * seconds[n]:8.2f}" for n in ROWS))
    draw(found, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
