"""Samples to pairs of numbers, one pair a prompt.

The unit is the prompt, a whole conversation for multi-turn sets: its turns are summed, then the median over the repeats is
taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specbench.measure.records.events import SampleRecord

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class ArmTimes:
    """One arm on P prompts and R repeats. Shapes [P, R]; NaN where a repeat is missing.

    `output_tokens` includes the token of each turn's prefill, `decode_tokens` does not.
    """

    decode_seconds: FloatArray
    prefill_seconds: FloatArray
    decode_tokens: FloatArray
    output_tokens: FloatArray

    def decode(self) -> tuple[FloatArray, FloatArray]:
        """Per prompt: decode tokens and decode seconds, medians over repeats, each of shape [P]."""
        return _median_pair(self.decode_tokens, self.decode_seconds)

    def end_to_end(self) -> tuple[FloatArray, FloatArray]:
        """Per prompt: output tokens and prefill + decode seconds, medians over repeats, each of shape [P]."""
        return _median_pair(self.output_tokens, self.prefill_seconds + self.decode_seconds)


def _median_pair(tokens: FloatArray, seconds: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Median over repeats. The median is taken of the time per token, so that repeats of unequal length stay comparable."""
    # nanmedian goes through the rows in Python where there are few columns: only where something is missing.
    whole = tokens.size and not (np.isnan(seconds).any() or np.isnan(tokens).any())
    median = np.median if whole else np.nanmedian
    median_tokens = median(tokens, axis=1)
    return median_tokens, median_tokens * median(seconds / tokens, axis=1)


@dataclass(frozen=True)
class PairedTimes:
    """Both arms on the prompts that both finished, in the order of first appearance."""

    prompts: tuple[str, ...]
    categories: tuple[str | None, ...]
    method: ArmTimes
    baseline: ArmTimes
    num_excluded: int = 0  # prompts that failed, were too long, or ended with their first token in one of the arms

    def __len__(self) -> int:
        return len(self.prompts)


def _cells(samples: Iterable[SampleRecord], arm: str) -> dict[tuple[str, int], tuple[list[float], set[int]]]:
    """By (prompt, repeat): the sums [decode s, prefill s, decode tokens, output tokens] over turns, and the turns seen."""
    cells: dict[tuple[str, int], tuple[list[float], set[int]]] = {}
    broken: set[tuple[str, int]] = set()
    for r in samples:
        if r.arm != arm:
            continue
        cell = (r.sample_id, r.repeat)
        if r.error is not None or r.decode_seconds is None or r.prefill_seconds is None or r.num_emitted is None:
            broken.add(cell)  # a conversation with a failed turn is no conversation
            continue
        row, turns = cells.setdefault(cell, ([0.0, 0.0, 0.0, 0.0], set()))
        for i, value in enumerate((r.decode_seconds, r.prefill_seconds, r.num_emitted, len(r.output_ids))):
            row[i] += value
        turns.add(r.turn)
    return {cell: found for cell, found in cells.items() if cell not in broken}


def _arm_times(cells: dict[tuple[str, int], list[float]], prompts: Sequence[str], repeats: Sequence[int]) -> ArmTimes:
    table = np.full((4, len(prompts), len(repeats)), np.nan)
    for p, prompt in enumerate(prompts):
        for r, repeat in enumerate(repeats):
            row = cells.get((prompt, repeat))
            if row is not None:
                table[:, p, r] = row
    return ArmTimes(*table)


def arm_times(samples: Sequence[SampleRecord], arm: str) -> ArmTimes:
    """One arm alone, on all prompts that it finished with at least one decode token in some repeat."""
    cells = {cell: row for cell, (row, _) in _cells(samples, arm).items() if row[2] > 0 and row[0] > 0}
    prompts = list(dict.fromkeys(prompt for prompt, _ in cells))
    return _arm_times(cells, prompts, sorted({repeat for _, repeat in cells}))


def pair_samples(samples: Sequence[SampleRecord]) -> PairedTimes:
    """Pair the two arms by prompt and repeat. A repeat counts where both arms finished the same turns of the prompt."""
    method, baseline = _cells(samples, "method"), _cells(samples, "baseline")
    common = [
        cell
        for cell, (row, turns) in method.items()
        if cell in baseline and turns == baseline[cell][1] and min(row[0], row[2], *baseline[cell][0][::2]) > 0
    ]
    everyone = dict.fromkeys(r.sample_id for r in samples)
    kept = {prompt for prompt, _ in common}
    prompts = [prompt for prompt in everyone if prompt in kept]
    category = {r.sample_id: r.category for r in samples}
    repeats = sorted({repeat for _, repeat in common})
    return PairedTimes(
        prompts=tuple(prompts),
        categories=tuple(category[prompt] for prompt in prompts),
        method=_arm_times({cell: method[cell][0] for cell in common}, prompts, repeats),
        baseline=_arm_times({cell: baseline[cell][0] for cell in common}, prompts, repeats),
        num_excluded=len(everyone) - len(prompts),
    )
