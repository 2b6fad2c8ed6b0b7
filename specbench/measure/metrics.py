"""Pure functions from rounds and samples to numbers, each variant of a word under its own name.

"Mean accepted tokens" has several incompatible meanings in the literature:

    emitted_per_round    tokens kept per target forward, the target's own token included (Spec-Bench MAT, EAGLE's tau, AMUSD)
    accepted_per_round   draft tokens kept per target forward (PEARL's `sd` figure, vLLM's counter)
    accepted_run_length  draft tokens kept between two rejections, across rounds (PEARL's own)

each either pooled (totals over all rounds) or as the mean of per-sample means. All seconds are sums over the samples given.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specbench.measure.records.events import PARTS, ROUND_FIELDS, Round, SampleKey, SampleRecord

Rounds = Mapping[SampleKey, Sequence[Round] | Mapping[str, Sequence[Any]]]
IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

_INTEGERS = (
    "num_drafted", "num_accepted", "num_emitted", "num_discarded", "num_target_rows", "num_draft_forwards", "draft_depth",
    "rollback_depth", "epoch", "num_rider_rows", "draft_version",
)  # fmt: skip
_SECONDS = ("t_start", "t_end", *(f"{part}_seconds" for part in PARTS))
_FLOATS = (*_SECONDS, "target_share")

PARTITION_TOLERANCE = 0.01  # the parts may exceed the decode time by this share, and no more


class IdentityError(ValueError):
    """A record that contradicts itself. `key` names the sample, `identity` the rule."""

    def __init__(self, key: object, identity: str, found: str):
        super().__init__(f"{key}: {identity} does not hold: {found}")
        self.key, self.identity, self.found = key, identity, found


@dataclass(frozen=True)
class RoundTable:
    """Rounds of many samples as flat arrays of length R; `sample[i]` is the index into `keys` of the sample of round i."""

    keys: tuple[SampleKey, ...]
    sample: IntArray
    columns: dict[str, NDArray[Any]]

    @classmethod
    def of(cls, rounds: Rounds) -> RoundTable:
        """From `Round` sequences or from columns as `store.read_rounds` gives them."""
        keys = tuple(rounds)
        listed = [
            value if isinstance(value, Mapping) else {name: [getattr(r, name) for r in value] for name in ROUND_FIELDS}
            for value in rounds.values()
        ]
        columns: dict[str, NDArray[Any]] = {}
        for name in ROUND_FIELDS:
            kind: Any = (
                np.int64 if name in _INTEGERS else np.float64 if name in _FLOATS else bool if name == "stale" else object
            )
            columns[name] = np.asarray([entry for value in listed for entry in value[name]], dtype=kind)
        lengths = [len(value["t_start"]) for value in listed]
        return cls(keys, np.repeat(np.arange(len(keys)), lengths), columns)

    def __getattr__(self, name: str) -> NDArray[Any]:
        if name in ROUND_FIELDS:
            return self.columns[name]
        raise AttributeError(name)

    def __len__(self) -> int:
        return len(self.sample)

    @property
    def cut_off(self) -> NDArray[np.bool_]:
        """Rounds that the output's end cut inside their draft: what lies behind it was neither kept nor rejected, shape [R]."""
        cut: NDArray[np.bool_] = (self.num_emitted == self.num_accepted) & (self.num_accepted < self.draft_depth)
        return cut

    @property
    def rejected(self) -> NDArray[np.bool_]:
        """Rounds in which the target contradicted a draft, shape [R]."""
        rejected: NDArray[np.bool_] = (self.num_accepted < self.draft_depth) & ~self.cut_off
        return rejected

    def arm(self, arm: str) -> RoundTable:
        """Only the rounds of one arm."""
        chosen = [i for i, key in enumerate(self.keys) if key[3] == arm]
        position = np.full(len(self.keys), -1)
        position[chosen] = np.arange(len(chosen))
        kept = position[self.sample] >= 0 if len(self) else np.zeros(0, bool)
        columns = {name: values[kept] for name, values in self.columns.items()}
        return RoundTable(tuple(self.keys[i] for i in chosen), position[self.sample[kept]], columns)

    def sums(self, name: str) -> FloatArray:
        """Sum of a column by sample, shape [len(keys)]."""
        weights = self.columns[name].astype(np.float64)
        return np.bincount(self.sample, weights=weights, minlength=len(self.keys)).astype(np.float64)

    def counts(self) -> IntArray:
        """Number of rounds by sample, shape [len(keys)]."""
        return np.bincount(self.sample, minlength=len(self.keys))


# ---------------------------------------------------------------------------------------------------- per round
def _per_round(table: RoundTable, name: str) -> dict[str, float | None]:
    if not len(table):
        return {"pooled": None, "mean_of_sample_means": None}
    counts, sums = table.counts(), table.sums(name)
    some = counts > 0
    return {"pooled": float(sums.sum() / counts.sum()), "mean_of_sample_means": float(np.mean(sums[some] / counts[some]))}


def emitted_per_round(table: RoundTable) -> dict[str, float | None]:
    """Tokens kept per target forward, its own token included (autoregressive = 1). Prefill and its token are no round."""
    return _per_round(table, "num_emitted")


def accepted_per_round(table: RoundTable) -> dict[str, float | None]:
    """Draft tokens accepted per target forward, without the target's own token (autoregressive = 0)."""
    return _per_round(table, "num_accepted")


def accepted_run_length(table: RoundTable) -> dict[str, float | None]:
    """Draft tokens accepted between two rejections, across rounds (PEARL, Liu et al. 2025, its own count).

    A run ends with every round that drafted something and rejected some of it; a run of length 0 counts. The run that the end
    of a sample cuts off is left out.
    """
    lengths: list[int] = []
    means: list[float] = []
    bounds = np.searchsorted(table.sample, np.arange(len(table.keys) + 1))
    for start, end in itertools.pairwise(bounds):
        ends = np.cumsum(table.num_accepted[start:end])[table.rejected[start:end]]
        runs = np.diff(ends, prepend=0)
        if len(runs):
            lengths.extend(runs.tolist())
            means.append(float(runs.mean()))
    if not lengths:
        return {"pooled": None, "mean_of_sample_means": None}
    return {"pooled": float(np.mean(lengths)), "mean_of_sample_means": float(np.mean(means))}


# ---------------------------------------------------------------------------------------------------- acceptance
def acceptance_rate(table: RoundTable) -> float | None:
    """Accepted over drafted positions (depth): for a chain accepted over drafted tokens. None when nothing was drafted."""
    depth = int(table.draft_depth.sum())
    return int(table.num_accepted.sum()) / depth if depth else None


def acceptance_rate_of_nodes(table: RoundTable) -> float | None:
    """Accepted over drafted nodes. Equals `acceptance_rate` for chains; for trees it falls with width and says little alone."""
    nodes = int(table.num_drafted.sum())
    return int(table.num_accepted.sum()) / nodes if nodes else None


def acceptance_by_position(table: RoundTable) -> list[float]:
    """Entry k-1: among rounds whose draft reaches depth k, the share that accepted at least k tokens (unconditional)."""
    deepest = int(table.draft_depth.max(initial=0))
    reached = [(table.draft_depth >= k) for k in range(1, deepest + 1)]
    return [float(np.mean(table.num_accepted[mask] >= k)) for k, mask in enumerate(reached, start=1)]


def conditional_acceptance_by_position(table: RoundTable) -> list[float | None]:
    """Entry k-1: among rounds that reach depth k and accepted k-1 tokens, the share that accepted the k-th too.

    Of a round that the output's end cut, the positions behind it were never asked.
    """
    asked = np.where(table.cut_off, table.num_accepted, table.draft_depth)
    rates: list[float | None] = []
    for k in range(1, int(table.draft_depth.max(initial=0)) + 1):
        mask = (asked >= k) & (table.num_accepted >= k - 1)
        rates.append(float(np.mean(table.num_accepted[mask] >= k)) if mask.any() else None)
    return rates


def accepted_histogram(table: RoundTable) -> dict[str, int]:
    """How many rounds accepted n draft tokens, by n (as text: JSON keys)."""
    return _histogram(table.num_accepted)


def _histogram(found: NDArray[Any]) -> dict[str, int]:
    return {str(v): c for v, c in sorted(Counter(found.tolist()).items())}


# ---------------------------------------------------------------------------------------------------- waste
def rollbacks(table: RoundTable) -> int:
    """Rounds in which drafted tokens were thrown away."""
    return int((table.num_discarded > 0).sum())


def stale_rounds(table: RoundTable) -> int:
    """Rounds whose published draft could not be used, because the target had left its prefix."""
    return int(table.stale.sum())


def rollback_depth_histogram(table: RoundTable) -> dict[str, int]:
    """How many rounds cut the draft's sequence back by n tokens, by n > 0 (as text: JSON keys)."""
    return _histogram(table.rollback_depth[table.rollback_depth > 0])


# ---------------------------------------------------------------------------------------------------- time
def seconds(table: RoundTable, samples: Iterable[SampleRecord]) -> dict[str, float]:
    """The wall time of the target's process, parted into draft, verify, wait, learn and other; they sum to decode time.

    `samples` are the finished samples whose rounds the table holds. Other is what no round claims: sampling, bookkeeping.
    """
    decode = sum(record.decode_seconds or 0.0 for record in samples)
    parts = {name: float(table.columns[f"{name}_seconds"].sum()) for name in PARTS}
    return {**parts, "other": max(0.0, decode - sum(parts.values()))}


def concurrent_seconds(samples: Iterable[SampleRecord]) -> dict[str, float]:
    """What other processes did during decoding, summed by role (draft, discarded_draft, idle)."""
    return _sums(record.concurrent_seconds for record in samples)


def counted(samples: Iterable[SampleRecord]) -> dict[str, float]:
    """What the method counted beside its rounds, summed by name."""
    return _sums(record.counted for record in samples)


def _sums(values: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for one in values:
        for name, value in one.items():
            total[name] = total.get(name, 0) + value
    return total


# ---------------------------------------------------------------------------------------------------- identities
def check_identities(samples: Iterable[SampleRecord], table: RoundTable) -> None:
    """Raise IdentityError at the first finished sample whose records contradict themselves.

    Tokens: rounds emit all but the first token, each accepted or accepted + 1. Drafts: accepted <= depth <= drafted.
    Time: rounds run forward and do not overlap, and their parts stay within the decode time (1 %).
    Failed samples (with `error` or without times) must have no numbers.
    """
    index = {key: i for i, key in enumerate(table.keys)}
    _check_rounds(table)
    emitted, counts = table.sums("num_emitted"), table.counts()
    claimed = np.sum([table.sums(f"{part}_seconds") for part in PARTS], axis=0)
    for record in samples:
        if record.error is not None or record.finish_reason in ("error", "prompt_too_long"):
            numbers = (record.prefill_seconds, record.decode_seconds, record.num_emitted, record.num_rounds)
            if any(number is not None for number in numbers):
                raise IdentityError(record.key, "a failed sample has no numbers", f"{numbers}")
            continue
        at = index.get(record.key)
        total, rounds = (int(emitted[at]), int(counts[at])) if at is not None else (0, 0)
        if record.num_rounds != rounds:
            raise IdentityError(record.key, "num_rounds = number of round records", f"{record.num_rounds} != {rounds}")
        if record.num_emitted != total:
            raise IdentityError(record.key, "num_emitted = sum over rounds", f"{record.num_emitted} != {total}")
        length = len(record.output_ids)
        if total + 1 != length and not (rounds == 0 and length == 0):
            raise IdentityError(record.key, "num_emitted over rounds + 1 = output length", f"{total} + 1 != {length}")
        if record.decode_seconds is None or record.prefill_seconds is None:
            raise IdentityError(record.key, "a finished sample has times", "prefill_seconds or decode_seconds is null")
        if at is not None and claimed[at] > record.decode_seconds * (1 + PARTITION_TOLERANCE) + 1e-6:
            found = f"{claimed[at]:.6f} s > {record.decode_seconds:.6f} s"
            raise IdentityError(record.key, "draft + verify + wait + learn <= decode_seconds (1 %)", found)


def _check_rounds(table: RoundTable) -> None:
    """Identities within rounds, vectorised; the error names the first offending sample and round."""
    if not len(table):
        return
    same = np.r_[False, table.sample[1:] == table.sample[:-1]]
    previous_end = np.r_[0.0, table.t_end[:-1]]
    rules: dict[str, NDArray[np.bool_]] = {
        "num_accepted <= draft_depth": table.num_accepted <= table.draft_depth,
        "num_accepted <= num_drafted": table.num_accepted <= table.num_drafted,
        "draft_depth <= num_drafted": table.draft_depth <= table.num_drafted,
        "draft_depth > 0 where something is drafted": (table.draft_depth > 0) == (table.num_drafted > 0),
        "num_accepted <= num_emitted <= num_accepted + 1": (table.num_emitted >= table.num_accepted)
        & (table.num_emitted <= table.num_accepted + 1),
        "counts are not negative": np.minimum.reduce([table.columns[name] for name in _INTEGERS]) >= 0,
        "num_target_rows >= num_drafted + num_rider_rows": table.num_target_rows >= table.num_drafted + table.num_rider_rows,
        "0 < target_share <= 1": (table.target_share > 0) & (table.target_share <= 1),
        "seconds are not negative": np.minimum.reduce([table.columns[name] for name in _SECONDS[2:]]) >= 0,
        "t_start <= t_end": table.t_start <= table.t_end,
        "rounds do not overlap": ~same | (table.t_start >= previous_end - 1e-6),
    }
    for rule, holds in rules.items():
        if not holds.all():
            bad = int(np.argmin(holds))
            number = int((table.sample[:bad] == table.sample[bad]).sum())
            values = {name: table.columns[name][bad].item() for name in (*_INTEGERS[:6], "draft_depth", "t_start", "t_end")}
            raise IdentityError(table.keys[table.sample[bad]], rule, f"round {number}: {values}")
