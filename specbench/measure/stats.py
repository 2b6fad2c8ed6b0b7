"""Speed-up as a paired statistic over prompts, with intervals that say what they cover.

The unit is the prompt (see `pairing`). Every estimator has its own name, because the choice of average alone moves the
figure by several per cent. Two intervals with two meanings: over prompts (would it hold on other prompts of this kind?) and
over repeats (would this machine say it again?).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from specbench.measure.pairing import ArmTimes, FloatArray, PairedTimes
from specbench.measure.records.events import SampleRecord

LEVEL = 0.95
RESAMPLES = 10_000
MIN_PROMPTS = 50  # below, percentile intervals of long-tailed prompt sets cover less than they say
MIN_STRATUM = 5  # a category with fewer prompts is not a stratum of its own: resampling it would hardly vary
MAX_SPREAD = 0.05
MAX_DRIFT = 0.02
_CHUNK = 2_000_000  # drawn indices at once: bounds the memory of a bootstrap


# ---------------------------------------------------------------------------------------------------- bootstrap
def strata_of(categories: Sequence[str | None]) -> NDArray[np.int64]:
    """Stratum of each prompt: its category, where that has MIN_STRATUM prompts; all the others together are one stratum."""
    sizes = Counter(categories)
    large = sorted(name for name, size in sizes.items() if name is not None and size >= MIN_STRATUM)
    number = {name: i for i, name in enumerate(large)}
    return np.array([number.get(name or "", len(large)) for name in categories], dtype=np.int64)


def bootstrap_totals(
    values: FloatArray, resamples: int, rng: np.random.Generator, strata: NDArray[np.int64] | None = None
) -> FloatArray:
    """Column sums of `values` [P, K] over bootstrap resamples of its rows, [resamples, K].

    All columns of a row are drawn together: that is what makes the bootstrap paired. Rows are drawn within their stratum.
    """
    num_rows = len(values)
    groups = [np.arange(num_rows)] if strata is None else [np.flatnonzero(strata == s) for s in np.unique(strata)]
    totals = np.empty((resamples, values.shape[1]))
    step = max(1, _CHUNK // max(1, num_rows))
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = np.concatenate([group[rng.integers(0, len(group), (rows, len(group)))] for group in groups], axis=1)
        flat = (drawn + np.arange(rows)[:, None] * num_rows).ravel()
        counts = np.bincount(flat, minlength=rows * num_rows).reshape(rows, num_rows)
        totals[start : start + rows] = counts @ values
    return totals


def percentile_interval(estimates: FloatArray, level: float = LEVEL) -> tuple[float, float]:
    """The central `level` of bootstrap estimates."""
    low, high = np.quantile(estimates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _ratio(totals: FloatArray) -> FloatArray:
    """(method tokens / method seconds) / (baseline tokens / baseline seconds) from columns in that order."""
    return np.asarray((totals[..., 0] / totals[..., 1]) / (totals[..., 2] / totals[..., 3]))


def ratio_intervals(
    columns: FloatArray,
    rng: np.random.Generator,
    strata: NDArray[np.int64] | None = None,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> list[tuple[float, float] | None]:
    """Percentile intervals over prompts of ratios of totals, from the same resamples; None with fewer than two prompts.

    columns: [P, 4 n], for each of n ratios method tokens, method seconds, baseline tokens, baseline seconds. With equal token
    counts in both arms the ratio is the one of the seconds, in every resample.
    """
    assert columns.shape[1] % 4 == 0, "four columns per ratio"
    if len(columns) < 2:
        return [None] * (columns.shape[1] // 4)
    totals = bootstrap_totals(columns, resamples, rng, strata)
    return [percentile_interval(_ratio(totals[:, i : i + 4]), level) for i in range(0, columns.shape[1], 4)]


def t_interval(logs: FloatArray, level: float = LEVEL) -> tuple[float, float] | None:
    """Student-t interval of the geometric mean from log ratios; None with fewer than two of them."""
    n = len(logs)
    if n < 2:
        return None
    half = float(student_t.ppf((1 + level) / 2, n - 1)) * float(np.std(logs, ddof=1)) / np.sqrt(n)
    return float(np.exp(np.mean(logs) - half)), float(np.exp(np.mean(logs) + half))


# ---------------------------------------------------------------------------------------------------- speed-up
@dataclass(frozen=True)
class Speedup:
    """All estimators of one paired run. Intervals are (low, high) at 95 %, None where a single prompt or repeat allows none.

    ratio_of_totals: decode tokens/s of the method over the baseline's, both from totals (the headline)
    ci95: paired percentile bootstrap over prompts, stratified by category where there are categories
    ci95_repeats: t interval over the repeats' own ratios of totals on these fixed prompts (machine noise)
    geomean, geomean_ci95: geometric mean of per-prompt ratios and its t interval over prompts
    worst5: 5th percentile of per-prompt ratios; share_slower: share of prompts with a ratio below 1
    speedup_specbench: mean over prompts of tokens/s, prefill included, over the baseline's (Spec-Bench, Xia et al. 2024)
    end_to_end, end_to_end_ci95: ratio of totals with prefill and its token included
    """

    ratio_of_totals: float
    ci95: tuple[float, float] | None
    ci95_repeats: tuple[float, float] | None
    geomean: float
    geomean_ci95: tuple[float, float] | None
    worst5: float
    share_slower: float
    speedup_specbench: float
    end_to_end: float
    end_to_end_ci95: tuple[float, float] | None
    num_prompts: int
    num_repeats: int
    num_excluded: int
    method_tokens: float
    baseline_tokens: float
    method_seconds: float
    baseline_seconds: float
    same_lengths: bool  # both arms emitted the same number of tokens on every prompt
    num_strata: int
    resamples: int
    seed: int
    per_prompt: dict[str, float] = field(default_factory=dict)  # ratio by prompt

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, without the per-prompt ratios."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "per_prompt"}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}


def paired_speedup(pairs: PairedTimes, seed: int = 0, resamples: int = RESAMPLES) -> Speedup:
    """Every estimator from paired times. Raises ValueError when no prompt was finished by both arms."""
    if not len(pairs):
        raise ValueError("no prompt was finished by both arms with at least one decode token: nothing to compare")
    columns = np.column_stack([*pairs.method.decode(), *pairs.baseline.decode()])
    whole = np.column_stack([*pairs.method.end_to_end(), *pairs.baseline.end_to_end()])
    ratios = _ratio(columns)
    stratified = any(category is not None for category in pairs.categories)
    strata = strata_of(pairs.categories) if stratified else None
    rng = np.random.default_rng(seed)
    logs = np.log(ratios)
    rates = whole[:, ::2] / whole[:, 1::2]  # tokens/s by prompt: method, baseline
    repeat_logs = _log_ratio_by_repeat(pairs)
    decode_interval, whole_interval = ratio_intervals(np.hstack([columns, whole]), rng, strata, resamples)
    return Speedup(
        ratio_of_totals=float(_ratio(columns.sum(0))),
        ci95=decode_interval,
        ci95_repeats=t_interval(repeat_logs),
        geomean=float(np.exp(logs.mean())),
        geomean_ci95=t_interval(logs),
        worst5=float(np.quantile(ratios, 0.05)),
        share_slower=float(np.mean(ratios < 1)),
        speedup_specbench=float(rates[:, 0].mean() / rates[:, 1].mean()),
        end_to_end=float(_ratio(whole.sum(0))),
        end_to_end_ci95=whole_interval,
        num_prompts=len(pairs),
        num_repeats=pairs.method.decode_seconds.shape[1],
        num_excluded=pairs.num_excluded,
        method_tokens=float(columns[:, 0].sum()),
        baseline_tokens=float(columns[:, 2].sum()),
        method_seconds=float(columns[:, 1].sum()),
        baseline_seconds=float(columns[:, 3].sum()),
        same_lengths=bool(np.array_equal(columns[:, 0], columns[:, 2])),
        num_strata=1 if strata is None else len(np.unique(strata)),
        resamples=resamples,
        seed=seed,
        per_prompt=dict(zip(pairs.prompts, ratios.tolist(), strict=True)),
    )


def _log_ratio_by_repeat(pairs: PairedTimes) -> FloatArray:
    """Log ratio of totals of every repeat that has all prompts."""
    names = ("decode_tokens", "decode_seconds")
    arms = [getattr(arm, name) for arm in (pairs.method, pairs.baseline) for name in names]
    totals = np.stack([a.sum(0) for a in arms], axis=-1)  # [R, 4]; NaN where a prompt is missing
    return np.log(_ratio(totals[np.isfinite(totals).all(-1)]))


def distinguishable(
    interval: Sequence[float] | None, noise_floor: Sequence[float] | None = None, over_repeats: Sequence[float] | None = None
) -> tuple[bool, str | None]:
    """Whether a speed-up may be called one, and the reason if not: both its intervals have to exclude 1.

    interval: over prompts. over_repeats: None with one repeat, and then nothing is asked of it. noise_floor: interval of the
    baseline against itself.
    """
    if interval is None:
        return False, "one prompt has no interval"
    for ends, what in ((interval, "prompts"), (over_repeats, "repeats")):
        if ends is not None and ends[0] <= 1 <= ends[1]:
            return False, f"the interval over {what} {ends[0]:.3f} to {ends[1]:.3f} contains 1"
    low, high = interval
    if noise_floor is not None and noise_floor[0] <= low and high <= noise_floor[1]:
        return False, f"the interval lies inside the noise floor {noise_floor[0]:.3f} to {noise_floor[1]:.3f}"
    return True, None


# ---------------------------------------------------------------------------------------------------- warnings
def spread(times: ArmTimes) -> float | None:
    """Median over prompts of the coefficient of variation of the time per token over repeats; None with one repeat."""
    per_token = times.decode_seconds / times.decode_tokens
    enough = per_token[np.isfinite(per_token).sum(1) >= 2]
    if not len(enough):
        return None
    return float(np.median(np.nanstd(enough, axis=1, ddof=1) / np.nanmean(enough, axis=1)))


def drift(samples: Iterable[SampleRecord], arm: str) -> tuple[float, float] | None:
    """Relative change of an arm's time per token from the run's first sample to its last, and its standard error.

    Least squares of log time per token on the running order, prompt means removed (a prompt's own speed is no drift). None
    where repeats are missing or the order does not vary within prompts.
    """
    done = [r for r in samples if r.arm == arm and r.error is None and r.decode_seconds and r.num_emitted]
    if len(done) < 3:
        return None
    logs = np.log([(r.decode_seconds or 0.0) / (r.num_emitted or 1) for r in done])
    order = np.array([r.order for r in done], dtype=np.float64)
    order = (order - order.min()) / max(1.0, float(np.ptp(order)))
    units = {unit: i for i, unit in enumerate(dict.fromkeys((r.sample_id, r.turn) for r in done))}
    unit = np.array([units[(r.sample_id, r.turn)] for r in done])
    counts = np.bincount(unit)
    x = order - (np.bincount(unit, order) / counts)[unit]
    y = logs - (np.bincount(unit, logs) / counts)[unit]
    sxx = float(x @ x)
    freedom = len(done) - len(units) - 1
    if freedom < 1 or sxx < 1e-12:
        return None
    slope = float(x @ y) / sxx
    residual = y - slope * x
    error = float(np.sqrt(residual @ residual / freedom / sxx))
    return float(np.expm1(slope)), error


def warnings_for(samples: Sequence[SampleRecord], pairs: PairedTimes) -> list[str]:
    """What a reader must know beside the number, one line each."""
    found: list[str] = []
    if len(pairs) < MIN_PROMPTS:
        few = f"only {len(pairs)} prompt{'s' * (len(pairs) != 1)}"
        found.append(f"{few}: intervals over fewer than {MIN_PROMPTS} prompts cover less than 95 %")
    if pairs.num_excluded:
        some = f"{pairs.num_excluded} prompt{'s' * (pairs.num_excluded != 1)}"
        found.append(f"{some} left out: failed, too long, or without a decode token in one of the arms")
    for name, times in (("method", pairs.method), ("baseline", pairs.baseline)):
        value = spread(times) if len(pairs) else None
        if value is not None and value > MAX_SPREAD:
            found.append(f"{name}: times of one prompt spread by {value:.1%} over repeats (above {MAX_SPREAD:.0%})")
        trend = drift(samples, name)
        if trend is not None and abs(trend[0]) > MAX_DRIFT and abs(trend[0]) > 3 * trend[1]:
            word = "slower" if trend[0] > 0 else "faster"
            found.append(f"{name}: became {abs(trend[0]):.1%} {word} over the run (drift)")
    return found
