"""What rollbacks cost, from the rounds of a run: how many, how deep, and what they took in tokens and in time.

A rollback is a round because of which drafted tokens were thrown away; its depth is how many. Its cost in time has two parts
that are not added up, because they fall on different processes: the drafting of what was thrown away (beside the target where
the draft has a process of its own, on the target's path where it has none), and the target's wait for fresh drafts in the round
after it, compared with the wait in other rounds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from specbench.analysis.derive.derive import RESAMPLES, Comparison, Estimate, prompts_of
from specbench.measure import stats
from specbench.measure.metrics import RoundTable
from specbench.measure.pairing import FloatArray

SUMS = (
    "tokens", "rounds", "rollbacks", "discarded", "stale", "decode_seconds", "thrown_seconds",
    "after", "wait_after", "others", "wait_others",
)  # fmt: skip


@dataclass(frozen=True)
class Rollbacks:
    """Estimates with 95 % intervals over prompts; None where there is nothing to divide by.

    per_100_tokens: rollbacks per 100 decode tokens. share_of_rounds: of all target forwards. depth: tokens thrown away per
    rollback. discarded_per_100: tokens thrown away per 100 decode tokens. stale_per_100: rounds that found a stale draft.
    thrown_ms_per_token: drafting time of what was thrown away. extra_wait_ms: the target's wait in a round after a rollback
    over that in another round. wait_percent: those extra waits' share of the decode time. largest: the deepest rollback.
    """

    per_100_tokens: Estimate | None
    share_of_rounds: Estimate | None
    depth: Estimate | None
    discarded_per_100: Estimate | None
    stale_per_100: Estimate | None
    thrown_ms_per_token: Estimate | None
    thrown_percent: Estimate | None
    extra_wait_ms: Estimate | None
    wait_percent: Estimate | None
    largest: int


def follows_rollback(table: RoundTable) -> tuple[np.ndarray, np.ndarray]:
    """Per round: whether it comes right after a rollback of its own sample, and whether any round of the sample came before."""
    if not len(table):
        return np.zeros(0, bool), np.zeros(0, bool)
    same = np.r_[False, table.sample[1:] == table.sample[:-1]]
    return same & np.r_[False, table.num_discarded[:-1] > 0], same


def sums_by_prompt(comparison: Comparison, run: int) -> FloatArray:
    """[P, len(SUMS)]: totals of a run's method arm by prompt, over turns and repeats."""
    table = comparison.rounds(run)
    prompt, num_prompts = prompts_of(table)
    if not num_prompts:
        return np.zeros((0, len(SUMS)))
    after, eligible = follows_rollback(table)
    wait = table.wait_seconds
    columns = {
        "tokens": table.num_emitted,
        "rounds": np.ones(len(table)),
        "rollbacks": table.num_discarded > 0,
        "discarded": table.num_discarded,
        "stale": table.stale,
        "decode_seconds": table.t_end - table.t_start,
        "thrown_seconds": _thrown_on_the_targets_path(table),
        "after": after,
        "wait_after": np.where(after, wait, 0.0),
        "others": eligible & ~after,
        "wait_others": np.where(eligible & ~after, wait, 0.0),
    }
    weights = [np.asarray(columns[name], dtype=float) for name in SUMS]
    made: FloatArray = np.column_stack([np.bincount(prompt, weights=w, minlength=num_prompts) for w in weights]).astype(float)
    samples = comparison.frames.samples_of(run)
    own = samples[(samples["arm"] == comparison.frames.own_arm(run)) & samples["decode_seconds"].notna()]
    thrown = own.groupby("sample_id")["concurrent_discarded_draft"].sum()  # NaN, without another process, counts as 0
    order = list(dict.fromkeys(key[0] for key in table.keys))
    made[:, SUMS.index("thrown_seconds")] += thrown.reindex(order).fillna(0.0).to_numpy()
    return made


def _thrown_on_the_targets_path(table: RoundTable) -> np.ndarray:
    """Drafting seconds of the target's own process, by the share of each round's drafts that was thrown away."""
    drafted = np.maximum(table.num_drafted, 1)
    share = np.where(table.num_drafted > 0, np.minimum(table.num_discarded / drafted, 1.0), 0.0)
    return np.asarray(table.draft_seconds * share)


def rollbacks_of(comparison: Comparison, run: int, resamples: int = RESAMPLES) -> Rollbacks:
    """All figures of one run, on the comparison's prompts."""
    sums = sums_by_prompt(comparison, run)
    table = comparison.rounds(run)
    totals = sums.sum(0)[None]
    draws = stats.bootstrap_totals(sums, resamples, np.random.default_rng(0)) if len(sums) > 1 else None

    def estimate(of: str, per: str, scale: float = 1.0) -> Estimate | None:
        return _estimate(totals, draws, lambda t: scale * t[:, SUMS.index(of)] / t[:, SUMS.index(per)])

    def extra(t: FloatArray) -> FloatArray:
        columns = {name: t[:, i] for i, name in enumerate(SUMS)}
        return np.asarray(columns["wait_after"] / columns["after"] - columns["wait_others"] / columns["others"])

    def share(t: FloatArray) -> FloatArray:
        return np.asarray(100 * extra(t) * t[:, SUMS.index("after")] / t[:, SUMS.index("decode_seconds")])

    waits = bool(table.wait_seconds.any())
    return Rollbacks(
        per_100_tokens=estimate("rollbacks", "tokens", 100),
        share_of_rounds=estimate("rollbacks", "rounds"),
        depth=estimate("discarded", "rollbacks"),
        discarded_per_100=estimate("discarded", "tokens", 100),
        stale_per_100=estimate("stale", "tokens", 100),
        thrown_ms_per_token=estimate("thrown_seconds", "tokens", 1e3),
        thrown_percent=estimate("thrown_seconds", "decode_seconds", 100),
        extra_wait_ms=_estimate(totals, draws, lambda t: 1e3 * extra(t)) if waits else None,
        wait_percent=_estimate(totals, draws, share) if waits else None,
        largest=int(table.num_discarded.max(initial=0)),
    )


def _estimate(totals: FloatArray, draws: FloatArray | None, ratio: object) -> Estimate | None:
    assert callable(ratio)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(ratio(totals)[0])
        if not np.isfinite(value):
            return None
        drawn = np.zeros(0) if draws is None else ratio(draws)
    drawn = drawn[np.isfinite(drawn)]
    return Estimate(value, *stats.percentile_interval(drawn)) if len(drawn) > 1 else Estimate(value)
