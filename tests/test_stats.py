"""The statistics of a speed-up: known answers, what moves an estimator, and whether the intervals cover what they say."""

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fake_records import chain_rounds, failed, paired_run, record_of
from numpy.typing import NDArray

from specbench.measure import pairing, stats
from specbench.measure.records.events import SampleRecord
from specbench.measure.warnings import USUAL, is_known, level_of

FloatArray = NDArray[np.float64]
FEW = 2000  # resamples where the interval itself is not the question


def sample(arm: str, prompt: str, tokens: int, seconds: float, **changes: object) -> SampleRecord:
    """A sample of `tokens` decode tokens in `seconds`; prefill 1 s."""
    record = record_of((prompt, 0, 0, arm), [], num_emitted=tokens, output_ids=tuple(range(tokens + 1)), decode_seconds=seconds)
    return dataclasses.replace(record, prefill_seconds=1.0, **changes)  # type: ignore[arg-type]


def test_each_estimator_by_hand() -> None:
    samples = [
        sample("baseline", "a", 100, 10.0),
        sample("method", "a", 100, 5.0),
        sample("baseline", "b", 10, 1.0),
        sample("method", "b", 10, 2.0),
    ]
    s = stats.paired_speedup(pairing.pair_samples(samples), resamples=FEW)
    assert s.ratio_of_totals == pytest.approx(11 / 7)  # seconds over seconds: the tokens are the same
    assert s.geomean == pytest.approx(np.sqrt(2.0 * 0.5))
    assert s.share_slower == 0.5
    assert s.worst5 == pytest.approx(0.5 + 0.05 * 1.5)
    assert s.end_to_end == pytest.approx(13 / 9)
    assert s.speedup_specbench == pytest.approx((101 / 6 + 11 / 3) / (101 / 11 + 11 / 2))
    assert s.same_lengths and s.per_prompt == {"a": pytest.approx(2.0), "b": pytest.approx(0.5)}


def test_different_lengths_compare_rates() -> None:
    samples = [sample("baseline", "a", 100, 10.0), sample("method", "a", 50, 2.5)]
    s = stats.paired_speedup(pairing.pair_samples(samples), resamples=FEW)
    assert s.ratio_of_totals == pytest.approx(2.0) and not s.same_lengths  # not 10 / 2.5 = 4: half of the text is missing
    assert s.ci95 is None  # one prompt says nothing about others


def test_median_over_repeats_shrugs_off_one_hiccup() -> None:
    samples = [sample(arm, "a", 100, t, repeat=i) for arm, scale in (("baseline", 2.0), ("method", 1.0))
               for i, t in enumerate([scale, scale * 1.001, scale * 30])]  # fmt: skip
    pairs = pairing.pair_samples(samples)
    assert stats.paired_speedup(pairs, resamples=FEW).ratio_of_totals == pytest.approx(2.0, rel=0.01)


def test_conversations_are_one_unit() -> None:
    samples = [
        sample(arm, "talk", 10, 1.0 + turn + (arm == "baseline"), turn=turn)
        for turn in range(2)
        for arm in ("method", "baseline")
    ]
    pairs = pairing.pair_samples(samples)
    assert len(pairs) == 1 and pairs.method.decode_tokens.tolist() == [[20.0]]
    assert stats.paired_speedup(pairs, resamples=FEW).ratio_of_totals == pytest.approx(5 / 3)
    broken = [dataclasses.replace(r, error="x", decode_seconds=None) if r.turn and r.arm == "method" else r for r in samples]
    assert len(pairing.pair_samples(broken)) == 0  # a conversation with a failed turn is no conversation
    missing = [r for r in samples if not (r.turn and r.arm == "method")]
    assert len(pairing.pair_samples(missing)) == 0


def test_only_what_both_arms_finished_is_paired() -> None:
    samples, _ = paired_run(6, 3)
    lost = [r for r in samples if r.key not in {("s/0", 0, 1, "method"), ("s/1", 0, 0, "baseline")} and r.sample_id != "s/2"]
    lost += [
        failed(("s/0", 0, 1, "method")),
        failed(("s/2", 0, 0, "method")),
        failed(("s/3", 1, 0, "baseline"), reason="prompt_too_long", error=None),
    ]
    pairs = pairing.pair_samples(lost)
    assert pairs.prompts == ("s/0", "s/1", "s/3", "s/4", "s/5") and pairs.num_excluded == 1
    seen = np.isfinite(pairs.method.decode_seconds)
    assert np.array_equal(seen, np.isfinite(pairs.baseline.decode_seconds))
    assert seen.tolist() == [[True, False, True], [False, True, True], [False, True, True], [True] * 3, [True] * 3]
    with pytest.raises(ValueError, match="nothing to compare"):
        stats.paired_speedup(pairing.pair_samples([r for r in samples if r.arm == "method"]))


def test_seeded_and_invariant_to_order() -> None:
    samples, _ = paired_run(30, 3, noise=0.2, categories=["a", "b", "c"])
    first = stats.paired_speedup(pairing.pair_samples(samples), seed=1, resamples=FEW)
    assert first == stats.paired_speedup(pairing.pair_samples(samples), seed=1, resamples=FEW)
    other = stats.paired_speedup(pairing.pair_samples(samples), seed=2, resamples=FEW)
    assert other.ci95 != first.ci95 and other.ratio_of_totals == first.ratio_of_totals
    assert first.num_strata == 3


def test_known_speedup_lies_in_every_interval() -> None:
    samples, _ = paired_run(60, 3, speedup=1.4, noise=0.05, seed=3)
    s = stats.paired_speedup(pairing.pair_samples(samples))
    for interval in (s.ci95, s.ci95_repeats, s.geomean_ci95):
        assert interval is not None and interval[0] < 1.4 < interval[1]
    assert s.ci95 is not None and s.ci95[1] - s.ci95[0] < 0.1


def test_interval_over_repeats_sees_noise_that_all_prompts_share() -> None:
    """A slow pass of one arm moves all prompts at once: the interval over prompts cannot see it, the one over repeats must."""
    samples, _ = paired_run(60, 3, noise=0.001)
    slow = {("method", 0): 1.0, ("method", 1): 1.1, ("method", 2): 1.2}
    shaken = [
        dataclasses.replace(r, decode_seconds=(r.decode_seconds or 0) * slow.get((r.arm, r.repeat), 1.0)) for r in samples
    ]
    s = stats.paired_speedup(pairing.pair_samples(shaken), resamples=FEW)
    assert s.ci95 is not None and s.ci95_repeats is not None
    assert s.ci95[1] - s.ci95[0] < 0.01 < 0.3 < s.ci95_repeats[1] - s.ci95_repeats[0]


def test_stratified_draws_keep_the_size_of_each_category() -> None:
    strata = stats.strata_of(["a"] * 5 + ["b"] * 20 + ["c"] * 2 + [None] * 2)
    assert strata.tolist() == [0] * 5 + [1] * 20 + [2] * 4  # small categories and none together
    indicator = np.eye(3)[strata]
    totals = stats.bootstrap_totals(indicator, 500, np.random.default_rng(0), strata)
    assert (totals == [5, 20, 4]).all()
    free = stats.bootstrap_totals(indicator, 500, np.random.default_rng(0))
    assert not (free == [5, 20, 4]).all() and (free.sum(1) == 29).all()


def test_distinguishable() -> None:
    assert stats.distinguishable((1.02, 1.10)) == (True, None)
    assert not stats.distinguishable((0.99, 1.10))[0]
    assert not stats.distinguishable((1.01, 1.02), noise_floor=(0.97, 1.03))[0]
    assert stats.distinguishable((1.01, 1.20), noise_floor=(0.97, 1.03))[0]
    assert not stats.distinguishable(None)[0]
    assert stats.distinguishable((1.02, 1.10), None, (1.01, 1.2)) == (True, None)
    clear, why = stats.distinguishable((1.02, 1.10), None, (0.98, 1.2))
    assert not clear and why == "the interval over repeats 0.980 to 1.200 contains 1"
    assert "over prompts" in str(stats.distinguishable((0.99, 1.10), None, (1.01, 1.2))[1])


# ---------------------------------------------------------------------------------------------------- warnings
def test_warnings_appear_and_stay_away() -> None:
    calm, _ = paired_run(60, 3, noise=0.005)
    assert stats.warnings_for(calm, pairing.pair_samples(calm)) == []
    few, _ = paired_run(10, 3, noise=0.005)
    assert [w.split(":")[0] for w in stats.warnings_for(few, pairing.pair_samples(few))] == ["only 10 prompts"]
    one, _ = paired_run(1, 1)
    alone = stats.warnings_for(one, pairing.pair_samples(one))[0]
    assert alone.startswith("only 1 prompt: ") and level_of(alone) == USUAL and is_known(alone)
    noisy, _ = paired_run(60, 3, noise=0.15)
    assert sum("spread" in w for w in stats.warnings_for(noisy, pairing.pair_samples(noisy))) == 2
    last = calm[-1].order
    drifting = [dataclasses.replace(r, decode_seconds=(r.decode_seconds or 0) * (1 + 0.1 * r.order / last)) for r in calm]
    warned = stats.warnings_for(drifting, pairing.pair_samples(drifting))
    assert sum("slower over the run (drift)" in w for w in warned) == 2
    slope, error = stats.drift(drifting, "method") or (0.0, 0.0)
    assert slope == pytest.approx(0.1, abs=4 * error + 0.01)


def test_interleaving_cancels_a_drift_and_blocks_do_not() -> None:
    """Why arms are interleaved: with 10 % drift, one arm after the other shifts the ratio, alternating does not."""

    def measured(orders: dict[str, Callable[[int], int]]) -> float:
        made = []
        for arm in ("method", "baseline"):
            for p in range(200):
                order = orders[arm](p)
                made.append(sample(arm, f"p{p}", 100, 1.0 * (1 + 0.1 * order / 400), order=order))
        return stats.paired_speedup(pairing.pair_samples(made), resamples=10).ratio_of_totals

    assert abs(measured({"method": lambda p: 2 * p + p % 2, "baseline": lambda p: 2 * p + 1 - p % 2}) - 1) < 0.001
    assert abs(measured({"method": lambda p: p + 200, "baseline": lambda p: p}) - 1) > 0.04


# ---------------------------------------------------------------------------------------------------- coverage
def population(n: int, rng: np.random.Generator) -> FloatArray:
    """Prompts with long-tailed lengths and varying acceptance: [n, 4] as `ratio_intervals` takes them."""
    length = np.clip(rng.lognormal(5.2, 0.6, n), 20, 1024).round()
    emitted = np.clip(rng.normal(2.6, 0.6, n), 1.1, None)
    return np.column_stack([length, length / emitted * 0.038, length, length * 0.028])


def unpaired_interval(columns: FloatArray, rng: np.random.Generator) -> tuple[float, float]:
    """The wrong twin: seconds over seconds, each arm's prompts drawn on their own."""
    method, baseline = (stats.bootstrap_totals(columns[:, [c]], 500, rng)[:, 0] for c in (1, 3))
    return stats.percentile_interval(baseline / method)


def coverage(interval: Callable[[FloatArray, np.random.Generator], tuple[float, float] | None], num_prompts: int = 80) -> float:
    """Share of 1,200 experiments whose interval holds the population's ratio."""
    rng = np.random.default_rng(5)
    truth = float(stats._ratio(population(2_000_000, rng).sum(0)))
    hits = 0
    for _ in range(1200):
        found = interval(population(num_prompts, rng), rng)
        assert found is not None
        hits += found[0] <= truth <= found[1]
    return hits / 1200


def as_promised(share: float) -> bool:
    """Simulations elsewhere put this interval at 0.92 to 0.94 for 80 prompts; three standard errors around that range."""
    return 0.92 - 3 * 0.0078 < share < 0.94 + 3 * 0.0069


def test_coverage_of_the_interval_over_prompts() -> None:
    assert as_promised(coverage(lambda columns, rng: stats.ratio_intervals(columns, rng, resamples=500)[0]))


def test_coverage_check_catches_a_narrow_interval() -> None:
    assert not as_promised(coverage(lambda columns, rng: stats.ratio_intervals(columns, rng, resamples=500, level=0.90)[0]))


def test_coverage_check_catches_an_unpaired_interval() -> None:
    assert not as_promised(coverage(unpaired_interval))


def test_coverage_of_the_geometric_mean() -> None:
    rng = np.random.default_rng(6)
    truth = np.mean(np.log(stats._ratio(population(2_000_000, rng))))
    hits = 0
    for _ in range(1200):
        found = stats.t_interval(np.log(stats._ratio(population(80, rng))))
        assert found is not None
        hits += found[0] <= np.exp(truth) <= found[1]
    assert as_promised(hits / 1200)


def test_rounds_do_not_matter_to_the_statistics() -> None:
    """Times come from the samples alone: two runs whose rounds differ but whose samples agree have one speed-up."""
    a, b = (
        record_of(("p", 0, 0, "method"), chain_rounds([2] * 4, 4)),
        record_of(("p", 0, 0, "method"), chain_rounds([1] * 6, 4)),
    )
    assert a.num_emitted == b.num_emitted
    baseline = sample("baseline", "p", 12, 1.0)
    speeds = [
        stats.paired_speedup(pairing.pair_samples([dataclasses.replace(r, decode_seconds=0.5), baseline]), resamples=10)
        for r in (a, b)
    ]
    assert speeds[0] == speeds[1]


def test_the_statistics_of_a_large_comparison_take_seconds() -> None:
    """500 prompts x 5 repeats x 12 methods in under 5 s of processor time (about 2 s)."""
    path = Path(__file__).parent / "bench" / "intervals.py"
    spec = importlib.util.spec_from_file_location("bench_intervals", path)
    assert spec is not None and spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    assert bench.seconds_of(500, 5, 12) < 5.0
