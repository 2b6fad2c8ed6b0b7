"""The rounds of every method on the tiny pair of the checks, times left out: what a change of the house must not change.

    python tests/golden_rounds.py        writes tests/golden/rounds.json anew (only when a difference is explained)

Methods of two processes run as two step functions under one seeded scheduler, so that their rounds do not depend on timing;
automatic sizes, which do, are fixed.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from specbench.check import GREEDY, SAMPLED, Bench
from specbench.check.tiny import PROMPTS, make_tiny_pair
from specbench.check.tiny_heads import with_tiny_heads
from specbench.config.compose import compose
from specbench.config.specs import PairSpec
from specbench.parts.schedules import two_sides
from specbench.processes import machine
from specbench.processes.steps import Progress

FOLDER = Path(__file__).parent / "golden"
GOLDEN = FOLDER / "rounds.json"
VARIANTS: tuple[tuple[str, ...], ...] = (
    ("autoregressive",),
    ("speculative",),
    ("speculative", "method.rule=ratio"),
    ("speculative", "method.compat=amusd"),
    ("amusd",),
    ("amusd", "method.draft_length=0", "method.max_lookahead=4"),
    ("amusd", "method.stale=wait"),
    ("pearl", "method.draft_length=3"),
    ("pearl", "method.draft_length=3", "method.rule=delta"),
    ("pearl", "method.draft_length=3", "method.rule=lockstep_ratio"),
    ("pearl", "method.draft_length=2", "method.pre_verify=false"),
    ("pearl", "method.draft_length=2", "method.post_verify=false"),
    ("eagle", "method.num_nodes=6"),
    ("eagle", "method.num_nodes=4", "method.top_k=1"),
    ("eagle", "method.num_nodes=6", "method.rule=delta"),
    ("medusa", "method.num_nodes=6"),
    ("medusa", "method.num_nodes=6", "method.rule=delta"),
    ("medusa", "method.num_nodes=6", "method.rule=typical"),
    ("hydra", "method.num_nodes=6"),
    ("hydra", "method.num_nodes=6", "method.rule=delta"),
)
COLUMNS = (
    "num_drafted",
    "num_accepted",
    "num_emitted",
    "num_discarded",
    "num_target_rows",
    "num_draft_forwards",
    "draft_depth",
    "rollback_depth",
    "stale",
    "epoch",
    "phase",
)
SEEDS = (0, 1)


class SteppedWorker:
    """The draft's program in this process, stepped by `interleaved`."""

    pid = None

    def __init__(self, role: str, load: Any, program: Any, *_: Any, **__: Any):
        self.program = program
        program.open(load())

    def prepare(self, order: Any) -> None:
        self.program.prepare(order)

    def go(self) -> None:
        pass

    def result(self) -> Any:
        return self.program.report

    def check(self) -> None:
        pass

    def memory_bytes(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        pass


def interleaved(side: Any, check: Callable[[], None], timeout_seconds: float) -> None:
    """`engine.steps.drive` for both sides at once: who steps next is drawn from a fixed seed."""
    programs = [worker.program for worker in check.__self__.workers]  # type: ignore[attr-defined]
    rng, sides = random.Random(0), [side, *programs]
    for _ in range(100_000):
        if not sides:
            return
        one = rng.choice(sides)
        if one.step() is Progress.FINISHED:
            sides.remove(one)
    raise AssertionError("no end")


def rounds_of(
    variant: tuple[str, ...], pair: PairSpec, prompts: Sequence[int] = range(len(PROMPTS)), seeds: Sequence[int] = SEEDS
) -> dict[str, Any]:
    """By law, prompt and seed: the output, and the columns of its rounds."""
    node = compose([f"method={variant[0]}", *variant[1:]]).method
    # Heads are kept beside the recording: trained anew they would differ by rounding from processor to processor.
    bench = Bench(with_tiny_heads(node, pair, FOLDER), pair, PROMPTS)
    done: dict[str, Any] = {}
    try:
        for name, law in (("greedy", GREEDY), ("sampled", SAMPLED)):
            for prompt in prompts:
                for seed in SEEDS[:1] if law.greedy else seeds:
                    outcome = bench.decode(law, bench.request(prompt, seed))
                    columns = {c: [getattr(r, c) for r in outcome.rounds] for c in COLUMNS}
                    done[f"{name}/{prompt}/{seed}"] = {"output_ids": outcome.output_ids, **columns}
    finally:
        bench.close()
    return done


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Step the workers of two-process methods here."""
    monkeypatch.setattr(machine, "Worker", SteppedWorker)
    monkeypatch.setattr(two_sides, "drive", interleaved)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
        install(monkeypatch)
        pair = make_tiny_pair(Path(folder))
        golden = {" ".join(variant): rounds_of(variant, pair) for variant in VARIANTS}
    for description in FOLDER.glob("heads_*/heads.json"):
        known = json.loads(description.read_text())
        known["target"]["sha256"] = None  # the tiny target's, which is made anew everywhere
        description.write_text(json.dumps(known, indent=1) + "\n")
    lines = [f"{json.dumps(name)}: {json.dumps(rounds, separators=(',', ':'))}" for name, rounds in golden.items()]
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
