"""Synthetic run folders for the tests of the analysis: written by RunStore from seeded chance, no model involved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from specbench.measure.lossless import compare
from specbench.measure.records.events import Round, SampleRecord
from specbench.measure.records.store import RunStore
from specbench.measure.summary import build_summary

T_AR = 0.020  # seconds per target forward
START = datetime(2026, 1, 1)
Key = tuple[str, int, int, str]


def chain(
    rng: np.random.Generator, tokens: int, gamma: int, alpha: float, draft: float, verify: float, free: bool, phase: str
) -> list[Round]:
    """Rounds that emit exactly `tokens`: i.i.d. acceptance `alpha` of `gamma` drafts; `free`: another process drafts."""
    rounds: list[Round] = []
    left, at, epoch = tokens, 0.0, 0
    while left > 0:
        accepted = min(left, int(np.minimum(rng.geometric(1 - alpha) - 1, gamma))) if gamma else 0
        emitted = min(left, accepted + 1)
        drafting, waiting = (0.0, max(0.0, gamma * draft - verify)) if free else (gamma * draft, 0.0)
        length = (drafting + waiting + verify) * float(np.exp(rng.normal(0, 0.03)))
        part = 0.98 * length / (drafting + waiting + verify)
        discarded = gamma - accepted
        rounds.append(
            Round(
                t_start=at,
                t_end=at + length,
                num_drafted=gamma,
                num_accepted=accepted,
                num_emitted=emitted,
                num_discarded=discarded,
                num_target_rows=gamma + 1,
                num_draft_forwards=gamma,
                draft_depth=gamma,
                rollback_depth=discarded,
                stale=free and discarded > 2,
                epoch=epoch,
                phase=phase,
                draft_seconds=drafting * part,
                verify_seconds=verify * part,
                wait_seconds=waiting * part,
            )
        )
        epoch += discarded > 0
        at += length
        left -= emitted
    return rounds


def provenance(conditions: str = "c0", gpu: str | None = None, commit: str = "a" * 40) -> dict[str, Any]:
    gpus = [{"name": gpu, "driver": "570.1", "power_limit_watts": 400.0}] if gpu else []
    return {
        "conditions_hash": conditions,
        "git": {"commit": commit, "dirty": False, "diff_sha256": None},
        "python": "3.11.7",
        "packages": {"versions": {"torch": "2.13.0"}, "plugins": {}},
        "machine": {"cpu_model": "Synthetic CPU", "logical_cores": 8},
        "gpus": gpus,
        "environment": {},
    }


def model(name: str, sha256: str, num_parameters: int) -> dict[str, Any]:
    return {"name": name, "sha256": sha256, "dtype": "float32", "device": "cpu", "num_parameters": num_parameters}


def write_run(
    root: Path,
    method: str = "speculative",
    data: str = "humaneval",
    *,
    gamma: int = 4,
    alpha: float = 0.7,
    draft_share: float = 0.2,
    prompts: Sequence[int] = tuple(range(8)),
    repeats: int = 2,
    categories: Sequence[str] | None = None,
    free: bool = False,
    phase: str = "",
    options: Mapping[str, Any] | None = None,
    conditions: str = "c0",
    gpu: str | None = None,
    target: str = "target",
    draft: str = "draft",
    target_sha: str | None = None,
    content: str | None = None,
    temperature: float = 0.0,
    claim: str = "greedy-exact",
    wrong: bool = False,
    source: str = "path",
    mode: str = "paired",
    single: bool = False,
    status: str = "success",
    power: bool = False,
    energy: Mapping[str, Any] | None = None,
    seed: int = 0,
    when: int = 0,
    mean_tokens: int = 40,
    run_changes: Mapping[str, Any] | None = None,
    resamples: int = 500,
    baseline: str = "autoregressive",
    baseline_gamma: int = 0,
    baseline_options: Mapping[str, Any] | None = None,
    pair_name: str | None = None,
    backend: str = "eager",
) -> Path:
    """One finished run; returns its folder. `when`: seconds after a fixed date. `wrong`: one output is not the baseline's."""
    config: dict[str, Any] = {
        "pair": {"name": f"{target}-pair"},
        "data": {"name": data, "source": source, "template": "auto", "history": "baseline", "max_prompt_tokens": None},
        "decoding": {"max_new_tokens": 128, "temperature": temperature, "top_k": None, "top_p": None, "seed": 0},
        "measure": {"repeats": repeats, "mode": mode},
        "engine": {"attention": "sdpa", "threads": None},
        "method": {"draft_length": gamma or None, **(options or {}), "_target_": f"specbench.methods.{method}.X"},
        "baseline": {
            "draft_length": baseline_gamma or None,
            **(baseline_options or {}),
            "_target_": f"specbench.methods.{baseline}.X",
        },
        "method_name": method,
        "baseline_name": baseline,
        "note": when,  # repetitions have hashes of their own
    }
    shown = f"{data}-standin" if source == "standin" else data
    facts = {
        "method": method if mode == "paired" else "autoregressive",
        "baseline": baseline,
        "created_at": (START + timedelta(seconds=when)).isoformat(),
        "pair": {
            "name": pair_name or f"{target}-pair",
            "target": model(target, target_sha or f"{target}-sha-0123456789", 1000)
            | ({"backend": backend} if backend != "eager" else {}),
            "draft": model(draft, f"{draft}-sha-0123456789", int(1000 * draft_share)) if gamma else None,
            "tokenizer": {"sha256": "tokenizer-sha"},
        },
        "data": {
            "name": shown,
            "source": source,
            "sha256": f"{data}-sha",
            "content_sha256": content or f"{data}-content",
            "sample_ids": [f"{data}/{p}" for p in prompts],
        },
        "device": "cuda:0" if gpu else "cpu",
        "num_devices": 2 if free else 1,
        "provenance": provenance(conditions, gpu),
        "warnings": [],
        **(run_changes or {}),
    }
    samples, rounds = records(
        data, prompts, repeats, categories, gamma, alpha, draft_share, free, phase, single, wrong, mean_tokens, seed,
        baseline_gamma,
    )  # fmt: skip
    refuse = "rule typical is lossy" if claim == "lossy" else None
    lossless = compare(samples, claim=claim, refuse=refuse).as_dict()
    started = START + timedelta(seconds=when)
    # No power fails on these: without the wait for the disk after every sample they are there in half the time.
    with mock.patch("os.fsync"), RunStore.create(root, method, shown, config, started) as store:
        store.write_run(facts)
        for record in samples:
            store.append(record, rounds[record.key])
        if power:
            store.append_power(power_rows(free))
        store.set_status(status)
        run = {**store.run, "run_folder": str(store.folder)}
        store.write_summary(build_summary(run, samples, rounds, lossless=lossless, energy=energy, resamples=resamples))
    return store.folder


def records(
    data: str,
    prompts: Sequence[int],
    repeats: int,
    categories: Sequence[str] | None,
    gamma: int,
    alpha: float,
    draft_share: float,
    free: bool,
    phase: str,
    single: bool,
    wrong: bool,
    mean_tokens: int,
    seed: int,
    baseline_gamma: int = 0,
) -> tuple[list[SampleRecord], dict[Key, list[Round]]]:
    """Both arms in random order; a prompt's length is the same in every run."""
    rng = np.random.default_rng(seed)
    samples: list[SampleRecord] = []
    rounds: dict[Key, list[Round]] = {}
    lengths = {p: int(np.random.default_rng(p).integers(mean_tokens // 2, 2 * mean_tokens)) for p in prompts}
    for repeat in range(repeats):
        for p in prompts:
            for arm in rng.permutation(["method"] if single else ["method", "baseline"]):
                key = (f"{data}/{p}", 0, repeat, str(arm))
                depth = gamma if arm == "method" else baseline_gamma
                drafting = arm == "method" and gamma > 0
                verify = T_AR * (1.1 if depth else 1.0)
                beside = (free, phase) if drafting else (False, "")
                own = (depth, alpha, T_AR * draft_share, verify, *beside) if depth else (0, 0, 0, verify, False, "")
                made = chain(rng, lengths[p], *own)
                seconds = made[-1].t_end
                shares = {"draft": 0.7, "discarded_draft": 0.2, "idle": 0.1} if free and drafting else {}
                ids = list(range(lengths[p] + 1))
                if wrong and arm == "method" and p == prompts[0]:
                    ids[-1] += 1
                samples.append(
                    SampleRecord(
                        *key,
                        order=len(samples),
                        category=None if categories is None else categories[p % len(categories)],
                        prompt_ids=(1, 2, 3),
                        output_ids=tuple(ids),
                        finish_reason="length",
                        prefill_seconds=0.03,
                        decode_seconds=seconds,
                        num_emitted=lengths[p],
                        num_rounds=len(made),
                        concurrent_seconds={part: share * seconds for part, share in shares.items()},
                        threads=1,
                    )
                )
                rounds[key] = made
    return samples, rounds


def power_rows(free: bool, seconds: float = 12.0) -> list[dict[str, Any]]:
    """A trace of two devices at 10 Hz over four blocks: method, baseline, baseline, method."""
    rng = np.random.default_rng(5)
    rows = []
    for i in range(int(4 * seconds * 10)):
        method = int(i / (seconds * 10)) in (0, 3)
        for device, role in (("GPU-aaaa", "target"), ("GPU-bbbb", "draft")):
            watts = (180.0 if method else 220.0) if role == "target" else (130.0 if method and free else 49.0)
            row = {"time_seconds": 100 + i / 10, "device": device, "role": role, "watts": watts + float(rng.normal(0, 4))}
            rows.append({**row, "utilisation": 0.7, "arm": "method" if method else "baseline"})
    return rows


def energy_of(joules: float, baseline: float) -> dict[str, Any]:
    """An energy entry of a summary, as the energy pass makes it."""
    parts = {"draft": 0.2, "discarded_draft": 0.1, "verify": 0.5, "prefill": 0.05, "wait": 0.15}
    return {
        "source": "nvml_counter",
        "joules_per_token": joules,
        "joules_per_token_by_block": [0.98 * joules, 1.02 * joules],
        "net_joules_per_token": 0.7 * joules,
        "joules": joules * 1000,
        "joules_by_part": {part: share * joules * 1000 for part, share in parts.items()},
        "num_output_tokens": 1000,
        "baseline_joules_per_token": baseline,
        "baseline_joules_per_token_by_block": [0.99 * baseline, 1.01 * baseline],
    }
