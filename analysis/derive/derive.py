"""Numbers that a comparison needs and a single run's summary does not hold: on common prompts, by category, across runs.

All estimators are those of `specbench.measure.stats` and `metrics`; here they are only asked about subsets.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from specbench.analysis.derive.conditions import Group
from specbench.analysis.derive.outputs import read_outputs
from specbench.analysis.read.frames import Frames, LeftOut
from specbench.config.say import counted
from specbench.measure import metrics, stats
from specbench.measure.lossless import first_difference
from specbench.measure.metrics import RoundTable
from specbench.measure.pairing import ArmTimes, PairedTimes

RESAMPLES = 2_000  # of the intervals that only the analysis draws: their ends move by a few per cent of the width


@dataclass(frozen=True)
class Estimate:
    """A number with the ends of its 95 % interval, None where there is none."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        return None if self.low is None or self.high is None else (self.low, self.high)


def restrict(pairs: PairedTimes, keep: Iterable[bool]) -> PairedTimes:
    """The prompts that `keep`, one truth value per prompt, accepts."""
    rows = [i for i, kept in enumerate(keep) if kept]

    def arm(times: ArmTimes) -> ArmTimes:
        return ArmTimes(*(getattr(times, name)[rows] for name in ArmTimes.__dataclass_fields__))

    return replace(
        pairs,
        prompts=tuple(pairs.prompts[i] for i in rows),
        categories=tuple(pairs.categories[i] for i in rows),
        method=arm(pairs.method),
        baseline=arm(pairs.baseline),
    )


def columns_of(pairs: PairedTimes) -> np.ndarray:
    """[P, 4]: method tokens, method seconds, baseline tokens, baseline seconds; medians over repeats."""
    return np.column_stack([*pairs.method.decode(), *pairs.baseline.decode()])


def strata_of(pairs: PairedTimes) -> np.ndarray | None:
    return stats.strata_of(pairs.categories) if any(c is not None for c in pairs.categories) else None


def ratio_of_totals(pairs: PairedTimes, seed: int = 0, resamples: int = RESAMPLES) -> Estimate | None:
    """The speed-up of paired prompts; None without prompts."""
    return ratio_of(columns_of(pairs), strata_of(pairs), seed, resamples) if len(pairs) else None


def ratio_of(columns: np.ndarray, strata: np.ndarray | None, seed: int = 0, resamples: int = RESAMPLES) -> Estimate:
    """Of [P, 4] tokens and seconds of one arm and of the other: how many times as fast the first is, all prompts together."""
    total = columns.sum(0)
    interval = stats.ratio_intervals(columns, np.random.default_rng(seed), strata, resamples)[0]
    return Estimate(float((total[0] / total[1]) / (total[2] / total[3])), *(interval or (None, None)))


def ratio_of_speedups(ours: PairedTimes, theirs: PairedTimes, seed: int = 0, resamples: int = RESAMPLES) -> Estimate | None:
    """How much more one run gains over its own baseline than another run over its own, on their common prompts.

    The runs were not interleaved with each other; dividing by each run's own baseline takes the machine's state out. Prompts
    are drawn together for both runs. None without common prompts.
    """
    common = set(ours.prompts) & set(theirs.prompts)
    ours, theirs = (restrict(pairs, [p in common for p in pairs.prompts]) for pairs in (ours, theirs))
    if not common:
        return None
    position = {prompt: i for i, prompt in enumerate(theirs.prompts)}
    columns = np.hstack([columns_of(ours), columns_of(theirs)[[position[prompt] for prompt in ours.prompts]]])

    def ratio(t: np.ndarray) -> np.ndarray:
        one, other = ((t[..., i] / t[..., i + 1]) / (t[..., i + 2] / t[..., i + 3]) for i in (0, 4))
        return np.asarray(one / other)

    value = float(ratio(columns.sum(0)))
    if len(columns) < 2:
        return Estimate(value)
    draws = stats.bootstrap_totals(columns, resamples, np.random.default_rng(seed), strata_of(ours))
    return Estimate(value, *stats.percentile_interval(ratio(draws)))


# ---------------------------------------------------------------------------------------------------- one table's runs
@dataclass
class Comparison:
    """The runs of one pair and data set under one group's conditions, on the prompts that all of them finished."""

    frames: Frames
    pair: str
    data: str
    runs: pd.DataFrame
    prompts: tuple[str, ...] = ()
    restricted: bool = False
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @cached_property
    def rows(self) -> dict[int, dict[str, Any]]:
        """The rows of `runs` by number, as plain mappings: taking one out of a wide frame costs a hundred times as much."""
        return {int(run): row for run, row in self.runs.to_dict("index").items()}

    @cached_property
    def only(self) -> frozenset[str] | None:
        """The prompts to which runs that finished more are cut down; None where all finished the same."""
        return frozenset(self.prompts) if self.restricted else None

    def pairs(self, run: int) -> PairedTimes:
        pairs = self.frames.pairs[run]
        return pairs if self.only is None else restrict(pairs, [prompt in self.only for prompt in pairs.prompts])

    def speedup(self, run: int) -> Estimate | None:
        row = self.rows[run]
        if np.isnan(row["speedup"]):
            return None
        if not self.restricted:
            return Estimate(row["speedup"], *_ends(row["speedup_low"], row["speedup_high"]))
        return ratio_of_totals(self.pairs(run))

    def speedup_over_repeats(self, run: int) -> tuple[float, float] | None:
        """The interval that says how much this machine's noise moves the number on these prompts."""
        row, pairs = self.rows[run], self.pairs(run)
        if self.restricted and len(pairs):
            return stats.paired_speedup(pairs, resamples=2).ci95_repeats
        low, high = _ends(row["speedup_repeats_low"], row["speedup_repeats_high"])
        return None if low is None or high is None else (low, high)

    def rates(self, run: int) -> tuple[float | None, float | None]:
        """Decode tokens/s of the method and of its baseline on the common prompts."""
        row = self.rows[run]
        pairs = self.pairs(run)
        if not self.restricted or not len(pairs):
            return _known(row["tokens_per_second"]), _known(row["baseline_tokens_per_second"])
        total = columns_of(pairs).sum(0)
        return total[0] / total[1], total[2] / total[3]

    def rounds(self, run: int) -> RoundTable:
        return self.frames.table(run, self.frames.own_arm(run), self.only)

    def figures(self, run: int) -> dict[str, float | None]:
        """num_prompts, end_to_end, geomean, worst5 and rollbacks_per_100 decode tokens, on the common prompts."""
        row = self.rows[run]
        if not self.restricted or not len(self.pairs(run)):
            figures = {name: _known(row[name]) for name in ("num_prompts", "end_to_end", "geomean", "worst5")}
            tokens, thrown = row["decode_tokens"], row["rollbacks"]
        else:
            pairs, table = self.pairs(run), self.rounds(run)
            speed = stats.paired_speedup(pairs, resamples=2) if len(pairs) else None  # point estimates only
            figures = {name: getattr(speed, name, None) for name in ("num_prompts", "end_to_end", "geomean", "worst5")}
            tokens, thrown = int(table.num_emitted.sum()), metrics.rollbacks(table)
        return figures | {"rollbacks_per_100": 100 * thrown / tokens if tokens else None}

    def per_round(self, run: int, name: str) -> float | None:
        """emitted_per_round, accepted_per_round, accepted_run_length or acceptance_rate, pooled, on the common prompts."""
        if not self.restricted:
            return _known(self.rows[run][name])
        value = getattr(metrics, name)(self.rounds(run))
        return value["pooled"] if isinstance(value, dict) else value

    def by_category(self, run: int) -> dict[str, Estimate | None]:
        pairs = self.pairs(run)
        if not len(pairs):
            return {}
        columns, of = columns_of(pairs), np.array([c or "" for c in pairs.categories], dtype=object)
        return {name: ratio_of(columns[of == name], None) for name in dict.fromkeys(of) if name}


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _ends(low: float, high: float) -> tuple[float | None, float | None]:
    return (_known(low), _known(high))


def comparisons(frames: Frames, group: Group) -> list[Comparison]:
    """One comparison per pair and data set of the group."""
    return [_comparison(frames, pair, data, rows) for (pair, data), rows in group.cells()]


def _comparison(frames: Frames, pair: str, data: str, rows: pd.DataFrame) -> Comparison:
    out = Comparison(frames, pair, data, rows)
    paired = {run: frames.pairs[run].prompts for run in rows.index if len(frames.pairs[run])}
    if not paired:
        return out
    common: set[str] | None = None
    for run in sorted(paired, key=lambda run: -len(paired[run])):
        both = set(paired[run]) if common is None else common & set(paired[run])
        if not both:
            out.left_out.append(LeftOut(str(rows.loc[run, "folder"]), f"no prompt in common with the other runs on {data}"))
            continue
        common = both
    assert common is not None
    gone = [run for run in paired if not set(paired[run]) & common]
    out.runs = rows.drop(index=gone)
    sizes = {run: len(prompts) for run, prompts in paired.items() if run not in gone}
    first = next(prompts for run, prompts in paired.items() if run not in gone)
    out.prompts = tuple(prompt for prompt in first if prompt in common)
    out.restricted = any(size != len(common) for size in sizes.values())
    if out.restricted:
        prompts, span = counted(len(common), "prompt"), f"{min(sizes.values())} to {max(sizes.values())}"
        out.notes.append(f"{data}: compared on the {prompts} that all runs finished (they finished {span})")
    return out


# ---------------------------------------------------------------------------------------------------- rounds
def prompts_of(table: RoundTable) -> tuple[np.ndarray, int]:
    """The number of each round's prompt, and how many prompts there are."""
    number: dict[str, int] = {}
    of_key = [number.setdefault(key[0], len(number)) for key in table.keys]
    return np.array(of_key, dtype=np.int64)[table.sample], len(number)


def shares_by_prompt(
    of: np.ndarray, per: np.ndarray, resamples: int = RESAMPLES, least: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shares of counts [P, K] in others, pooled over prompts, and the ends of their 95 % intervals over prompts, [K] each.

    NaN where there is nothing to divide by; ends also with a single prompt, or where the share is of fewer than `least`.
    """
    low, high = ends = np.full((2, of.shape[1]), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = of.sum(0) / per.sum(0)
        if len(of) > 1:
            enough = per.sum(0) >= least
            draws = stats.bootstrap_totals(np.hstack([of, per]).astype(float), resamples, np.random.default_rng(0))
            drawn, whole = np.hsplit(draws, 2)
            ends[:, enough] = np.nanquantile((drawn / whole)[:, enough], [0.025, 0.975], axis=0)
    return share, low, high


def acceptance_by_position(table: RoundTable) -> pd.DataFrame:
    """Shares by position with 95 % intervals over prompts (rounds of one prompt are not independent).

    Columns: position (from 1), rounds (that drafted so deep), eligible (those that accepted all before), accepted (share of
    rounds that accepted at least so many), low, high, conditional (share of the eligible), conditional_low, conditional_high.
    """
    prompt, num_prompts = prompts_of(table)
    positions = np.arange(1, int(table.draft_depth.max(initial=0)) + 1)

    asked = np.where(table.cut_off, table.num_accepted, table.draft_depth)  # behind the output's end nothing was

    def by_prompt(num_before: int, depth: np.ndarray = asked) -> np.ndarray:
        """[P, K]: rounds that drafted so deep and accepted all but `num_before` of so many; 0 takes in the position itself."""
        masks = ((depth >= k) & (table.num_accepted >= k - num_before) for k in positions)
        counts = [np.bincount(prompt[mask], minlength=num_prompts) for mask in masks]
        return np.array(counts, dtype=int).reshape(len(positions), num_prompts).T

    reached, eligible, taken = by_prompt(len(positions), table.draft_depth), by_prompt(1), by_prompt(0)
    accepted, low, high = shares_by_prompt(taken, reached)
    made = {"position": positions, "rounds": reached.sum(0), "eligible": eligible.sum(0), "accepted": accepted}
    names = ("conditional", "conditional_low", "conditional_high")
    conditional = dict(zip(names, shares_by_prompt(taken, eligible), strict=True))
    return pd.DataFrame(made | {"conditional": conditional["conditional"], "low": low, "high": high} | conditional)


# ---------------------------------------------------------------------------------------------------- lossy methods
def agreement(folder: str, prompts: Iterable[str] | None = None) -> dict[str, float]:
    """How near a run's outputs are to its baseline's: a figure for lossy methods, no judgement of their quality.

    identical: share of equal outputs; prefix: mean length of the common beginning over the longer output's length.
    """
    ours, theirs = read_outputs(folder, "method"), read_outputs(folder, "baseline")
    wanted = None if prompts is None else set(prompts)
    shares = []
    for key in sorted(ours.keys() & theirs.keys()):
        if wanted is None or key[0] in wanted:
            at = first_difference(ours[key].ids, theirs[key].ids)
            shares.append(1.0 if at is None else at / max(len(ours[key].ids), len(theirs[key].ids)))
    if not shares:
        return {"identical": float("nan"), "prefix": float("nan"), "compared": 0}
    return {"identical": float(np.mean([s == 1.0 for s in shares])), "prefix": float(np.mean(shares)), "compared": len(shares)}
