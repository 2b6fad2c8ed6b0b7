"""Synthetic runs of the experiments that check something: scripted drafts, other configurations, other texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import analysis_runs
import numpy as np

from specbench.config.draft_errors import DraftErrors
from specbench.measure.records.events import Round, SampleRecord
from specbench.measure.theory import played as theory
from specbench.measure.theory.played import Step, Times

T_AR = 0.020
TIMES = Times(draft=0.005, verify=0.021, row=0.0005)
LIMIT = 48
METHODS = {"speculative": 4, "pearl": 4, "amusd": 2}


def played(method: str, errors: str, sample_id: str, num_tokens: int) -> tuple[list[Step], float]:
    """The rounds that the script makes in a method's schedule, and their seconds."""
    wrong, gamma = DraftErrors.parse(errors).wrong_positions(sample_id, 0, LIMIT), METHODS[method]
    if method == "amusd":
        return theory.free_running(wrong, num_tokens, LIMIT, TIMES, gamma)
    if method == "pearl":
        steps = theory.lockstep(wrong, num_tokens, LIMIT, gamma)
        return steps, sum(max(s.forwards * TIMES.draft, TIMES.target(max(1, s.drafted))) for s in steps)
    steps = theory.sequential(wrong, num_tokens, LIMIT, gamma)
    return steps, sum(s.forwards * TIMES.draft + TIMES.target(1 + s.drafted) for s in steps)


def write_scripted(
    root: Path, method: str, errors: str, *, does: str | None = None, num_prompts: int = 6, **options: Any
) -> Path:
    """A run of pair.draft_errors=<errors>. does: the pattern that its rounds follow in truth, if it is another."""

    def records(*_: Any) -> tuple[list[SampleRecord], dict[Any, list[Round]]]:
        samples: list[SampleRecord] = []
        rounds: dict[Any, list[Round]] = {}
        for repeat in range(2):
            for number in range(num_prompts):
                for arm in ("method", "baseline"):
                    key = (f"s/{number}", 0, repeat, arm)
                    num_tokens = LIMIT - number % 3
                    steps = [Step(0, 0, 1)] * (num_tokens - 1)
                    seconds = T_AR * len(steps)
                    if arm == "method":
                        steps, seconds = played(method, does or errors, key[0], num_tokens)
                    rounds[key] = _rounds(method if arm == "method" else "autoregressive", steps, seconds)
                    forwards = sum(r.num_draft_forwards for r in rounds[key])
                    beside = arm == "method" and method != "speculative"
                    samples.append(
                        SampleRecord(
                            *key, order=len(samples), category=None, threads=1, prompt_ids=(1, number),
                            output_ids=tuple(range(num_tokens)), finish_reason="length", prefill_seconds=0.01,
                            decode_seconds=seconds, num_emitted=num_tokens - 1, num_rounds=len(steps),
                            concurrent_seconds={"draft": TIMES.draft * forwards, "discarded_draft": 0.0} if beside else {},
                        )
                    )  # fmt: skip
        return samples, rounds

    pair = {
        "name": "builtin", "tokenizer": {"sha256": "t"}, "target": analysis_runs.model("builtin:target", "sha-t", 1000),
        "draft": analysis_runs.model("builtin:draft", "sha-d", 200) | {"errors": errors},
    }  # fmt: skip
    with mock.patch.object(analysis_runs, "records", records):
        folder = analysis_runs.write_run(
            root, method, gamma=METHODS[method], run_changes={"pair": pair}, when=next(WHEN), repeats=2, **options
        )
    change(folder, lambda run: run["config"]["decoding"].update(max_new_tokens=LIMIT))
    return folder


WHEN = iter(range(1_000_000))


def _rounds(method: str, steps: Sequence[Step], seconds: float) -> list[Round]:
    """Rounds of equal length; the time of a verifying forward is the one in TIMES."""
    made, each, trusted = [], seconds / max(1, len(steps)), 0
    for i, step in enumerate(steps):
        rows = 1 + (trusted if method == "pearl" else step.drafted)
        phase = "" if method != "pearl" else "post" if trusted else "pre"
        trusted = max(0, step.forwards - 1) if step.accepted == step.drafted else 0
        verify = T_AR if method == "autoregressive" else TIMES.target(rows)
        forwards = step.drafted if method == "amusd" else step.forwards
        made.append(
            Round(
                t_start=i * each, t_end=(i + 1) * each, num_drafted=step.drafted, num_accepted=step.accepted,
                num_emitted=step.emitted, num_discarded=step.drafted - step.accepted, num_target_rows=rows,
                num_draft_forwards=forwards, draft_depth=step.drafted, rollback_depth=step.drafted - step.accepted, phase=phase,
                draft_seconds=min(TIMES.draft * forwards, max(0.0, each - verify)) if method == "speculative" else 0.0,
                verify_seconds=min(verify, each),
            )
        )  # fmt: skip
    return made


def change(
    folder: Path,
    run: Callable[[dict[str, Any]], object] = lambda run: None,
    sample: Callable[[dict[str, Any]], object] = lambda row: None,
    verdict: str | None = None,
) -> Path:
    """Change run.json, every line of samples.jsonl, the verdict of summary.json; returns the folder."""
    facts = json.loads((folder / "run.json").read_text())
    run(facts)
    (folder / "run.json").write_text(json.dumps(facts))
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    for row in rows:
        sample(row)
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if verdict is not None:
        summary = json.loads((folder / "summary.json").read_text())
        summary["lossless"]["verdict"] = verdict
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def drawn(seed: int, arm: str | None, tilt: float = 0.0) -> Callable[[dict[str, Any]], None]:
    """Replace the outputs of an arm (None: of both, alike) by draws from one law per prompt, tilted towards token 0."""

    def apply(row: dict[str, Any]) -> None:
        if arm is not None and row["arm"] != arm:
            return
        number = int(row["sample_id"].rpartition("/")[2])
        law = np.random.default_rng(number).dirichlet(np.full(12, 0.5))
        law = (1 - tilt) * law + tilt * np.eye(12)[0]
        rng = np.random.default_rng([seed, number])
        row["output_ids"] = rng.choice(12, size=len(row["output_ids"]), p=law).tolist()

    return apply
