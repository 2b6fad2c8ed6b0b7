"""Synthetic records that obey every identity: a chain-drafting method and its baseline, from seeded chance."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from specbench.measure.records.events import Round, SampleRecord

Key = tuple[str, int, int, str]


def chain_rounds(accepted: Sequence[int], drafted: int, step: float = 0.01) -> list[Round]:
    """Rounds of a chain of `drafted` tokens with the given accepted counts, one after another, `step` seconds each."""
    return [
        Round(
            t_start=i * step,
            t_end=(i + 1) * step,
            num_drafted=drafted,
            num_accepted=a,
            num_emitted=a + 1,
            num_discarded=drafted - a,
            num_target_rows=drafted + 1,
            num_draft_forwards=drafted,
            draft_depth=drafted,
            rollback_depth=max(0, drafted - a - 1),
            draft_seconds=0.3 * step,
            verify_seconds=0.6 * step,
        )
        for i, a in enumerate(accepted)
    ]


def record_of(key: Key, rounds: Sequence[Round], order: int = 0, *, overhead: float = 1.0, **changes: object) -> SampleRecord:
    """The sample record that fits `rounds`; its ids count up from 0, so that equal lengths mean equal outputs."""
    emitted = sum(r.num_emitted for r in rounds)
    record = SampleRecord(
        sample_id=key[0],
        turn=key[1],
        repeat=key[2],
        arm=key[3],
        order=order,
        category=None,
        prompt_ids=(1, 2, 3),
        output_ids=tuple(range(emitted + 1)),
        finish_reason="length",
        prefill_seconds=0.005,
        decode_seconds=(rounds[-1].t_end if rounds else 0.0) * overhead,
        num_emitted=emitted,
        num_rounds=len(rounds),
    )
    return dataclasses.replace(record, **changes)  # type: ignore[arg-type]


def failed(key: Key, order: int = 0, reason: str = "error", error: str | None = "out of memory") -> SampleRecord:
    return SampleRecord(*key, order, None, (1, 2, 3), (), reason, error=error)


def paired_run(
    num_prompts: int = 12,
    num_repeats: int = 3,
    *,
    speedup: float = 1.5,
    noise: float = 0.01,
    seed: int = 0,
    categories: Sequence[str] | None = None,
) -> tuple[list[SampleRecord], dict[Key, list[Round]]]:
    """Both arms, interleaved in random order, identical outputs; lengths vary by prompt, times by `noise`."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(10, 40, num_prompts)
    samples: list[SampleRecord] = []
    rounds: dict[Key, list[Round]] = {}
    for repeat in range(num_repeats):
        for p in range(num_prompts):
            for arm in rng.permutation(["method", "baseline"]):
                key = (f"s/{p}", 0, repeat, str(arm))
                factor = float(np.exp(rng.normal(0, noise)))
                if arm == "method":  # 4 drafted, 2 accepted: 3 tokens a round
                    made = chain_rounds([2] * int(lengths[p]), 4, step=0.03 / speedup * factor)
                else:
                    made = [
                        dataclasses.replace(r, draft_seconds=0.0, num_draft_forwards=0)
                        for r in chain_rounds([0] * (3 * int(lengths[p])), 0, step=0.01 * factor)
                    ]
                category = None if categories is None else categories[p % len(categories)]
                samples.append(record_of(key, made, order=len(samples), category=category))
                rounds[key] = made
    return samples, rounds
