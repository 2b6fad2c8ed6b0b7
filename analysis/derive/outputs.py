"""Output ids of stored runs, set side by side: identity, first divergence, and statistics of tokens and n-grams.

Distances between two bodies of text are between their relative n-gram frequencies, pooled over prompts (an n-gram never spans
two outputs): total variation, in [0, 1], and Jensen-Shannon divergence in bits, in [0, 1] (Lin 1991). Finite samples of one law
lie apart too, so each distance comes with the one that chance makes: if both texts of a prompt come from one law, exchanging
them changes nothing, and the distances after random exchanges are what is to be expected (a paired permutation test).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

from specbench.measure.lossless import first_difference
from specbench.measure.records import store

Key = tuple[str, int, int]  # sample, turn, repeat
Ids = tuple[int, ...]
PERMUTATIONS = 2_000


@dataclass(frozen=True)
class Output:
    """was_cut: it ended at its limit of new tokens, and not at an end of its own."""

    prompt_ids: Ids
    ids: Ids
    was_cut: bool = False


def read_outputs(folder: str | Path, arm: str) -> dict[Key, Output]:
    """The finished outputs of one arm (method or baseline), from samples.jsonl."""
    return {
        (record.sample_id, record.turn, record.repeat): Output(
            tuple(record.prompt_ids), tuple(record.output_ids), record.finish_reason == "length"
        )
        for record in store.read_samples(folder)
        if record.arm == arm and record.decode_seconds is not None
    }


@dataclass
class Agreement:
    """How far outputs agree. positions: of the first difference in each that differs, in output tokens from 0.

    limits: the length up to which two outputs are the same, where the shorter ended there at its own limit; they are neither
    identical nor different.
    other_prompt: pairs that were not compared because their prompts differ (a conversation that went another way before).
    rounds_same: outputs, of those compared, whose rounds drafted, accepted and emitted the same numbers of tokens, one round
    after the other (counted by `repetitions.moved`).
    """

    compared: int = 0
    identical: int = 0
    positions: list[int] = field(default_factory=list)
    other_prompt: int = 0
    rounds_same: int = 0
    limits: list[int] = field(default_factory=list)

    @property
    def share(self) -> float | None:
        return self.identical / self.compared if self.compared else None

    @property
    def median_position(self) -> float | None:
        return float(np.median(self.positions)) if self.positions else None

    def text(self) -> str:
        """identical/compared, as a table prints it."""
        return f"{self.identical}/{self.compared}" if self.compared else "-"

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(*(getattr(self, part.name) + getattr(other, part.name) for part in fields(self)))


def agree(pairs: Iterable[tuple[Output, Output]]) -> Agreement:
    """Identity and first divergence of pairs of outputs."""
    found = Agreement()
    for ours, theirs in pairs:
        if ours.prompt_ids != theirs.prompt_ids:
            found.other_prompt += 1
            continue
        found.compared += 1
        at = first_difference(ours.ids, theirs.ids)
        if at is None:
            found.identical += 1
        else:
            shorter = min(ours, theirs, key=lambda output: len(output.ids))
            (found.limits if at == len(shorter.ids) and shorter.was_cut else found.positions).append(at)
    return found


def same_prompts(ours: dict[Key, Output], theirs: dict[Key, Output]) -> list[tuple[Output, Output]]:
    """The outputs of both to one prompt, of the first repeat that both have, by name; prompts that differ are left out."""
    first: dict[tuple[str, int], Key] = {}
    for key in sorted(ours.keys() & theirs.keys(), key=lambda key: (key[2], key)):
        if ours[key].prompt_ids == theirs[key].prompt_ids:
            first.setdefault(key[:2], key)
    return [(ours[key], theirs[key]) for key in first.values()]


# ---------------------------------------------------------------------------------------------------- n-grams
def ngrams(ids: Sequence[int], n: int) -> list[Ids]:
    return [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]


def distinct(outputs: Iterable[Sequence[int]], n: int) -> float | None:
    """Different n-grams over all n-grams (distinct-n, Li et al. 2016); None without any."""
    found = [gram for ids in outputs for gram in ngrams(ids, n)]
    return len(set(found)) / len(found) if found else None


def total_variation(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Half the sum of absolute differences over the last axis; counts need not be normalised."""
    return np.asarray(0.5 * np.abs(_shares(p) - _shares(q)).sum(-1))


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence in bits over the last axis; counts need not be normalised."""
    p, q = _shares(p), _shares(q)
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = np.where(p > 0, p * np.log2(p / middle), 0.0) + np.where(q > 0, q * np.log2(q / middle), 0.0)
    return np.asarray(np.maximum(0.0, parts.sum(-1) / 2))


def _shares(counts: np.ndarray) -> np.ndarray:
    return np.asarray(counts / np.maximum(counts.sum(-1, keepdims=True), 1))


@dataclass(frozen=True)
class Distance:
    """A distance between two bodies of text, and what chance alone makes of it.

    expected, upper: mean and 95 % quantile over exchanges of the two texts of a prompt. p_value: share of exchanges, the given
    assignment among them, that lie at least as far apart; 1 for identical texts.
    """

    value: float
    expected: float
    upper: float
    p_value: float


def distance(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    n: int,
    measure: Callable[[np.ndarray, np.ndarray], np.ndarray] = total_variation,
    seed: int = 0,
    permutations: int = PERMUTATIONS,
) -> Distance | None:
    """Distance of the n-gram frequencies of paired outputs (ids of one, ids of the other); None where there are none."""
    ours, theirs = _counts(pairs, n)
    if not ours.size or not ours.sum() or not theirs.sum():
        return None
    whole = float(measure(ours.sum(0), theirs.sum(0)))
    exchanged = np.random.default_rng(seed).random((permutations, len(pairs))) < 0.5
    drawn = []
    for rows in np.array_split(exchanged.astype(np.float64), max(1, permutations * ours.shape[1] // 4_000_000)):
        moved = rows @ (theirs - ours)
        drawn.append(measure(ours.sum(0) + moved, theirs.sum(0) - moved))
    distances = np.concatenate(drawn)
    as_far = int((distances >= whole - 1e-12).sum())
    return Distance(whole, float(distances.mean()), float(np.quantile(distances, 0.95)), (1 + as_far) / (1 + permutations))


def _counts(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], n: int) -> tuple[np.ndarray, np.ndarray]:
    """[prompts, n-grams] of either side."""
    number: dict[Ids, int] = {}
    cells = [[[number.setdefault(gram, len(number)) for gram in ngrams(ids, n)] for ids in pair] for pair in pairs]
    shape = (len(pairs), len(number))
    sides = []
    for side in (0, 1):
        counts = np.zeros(shape)
        for row, pair in enumerate(cells):
            np.add.at(counts[row], np.asarray(pair[side], dtype=np.int64), 1.0)
        sides.append(counts)
    return sides[0], sides[1]
