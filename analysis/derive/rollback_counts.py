"""What rollbacks cost, from the rounds of a run: how many, how deep, and what they took in tokens and in time.

A rollback is a round because of which drafted tokens were thrown away; its depth is how many. Its cost in time has two parts
that are not added up, because they fall on different processes: the drafting of what was thrown away (beside the target where
the draft has a process of its own, on the target's path where it has none), and the target's wait for fresh drafts in the round
after it, compared with the wait in other rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from specbench.analysis.derive.derive import RESAMPLES, Comparison, Estimate, prompts_of
from specbench.measure import stats
from specbench.measure.metrics import RoundTable
from specbench.measure.pairing import FloatArray

Sums = Mapping[str, FloatArray]  # the columns of `sums_by_prompt`: their totals, or those of every resample


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


def sums_by_prompt(comparison: Comparison, run: int) -> pd.DataFrame:
    """Totals of a run's method arm, a row per prompt, over turns and repeats."""
    frames, table = comparison.frames, comparison.rounds(run)
    prompt, num_prompts = prompts_of(table)
    after, eligible = follows_rollback(table)
    wait = table.wait_seconds
    thrown = np.minimum(table.num_discarded, table.num_drafted) / np.maximum(table.num_drafted, 1)
    columns = {
        "tokens": table.num_emitted,
        "rounds": np.ones(len(table)),
        "rollbacks": table.num_discarded > 0,
        "discarded": table.num_discarded,
        "stale": table.stale,
        "decode_seconds": table.t_end - table.t_start,
        "thrown_seconds": table.draft_seconds * thrown,  # on the target's path
        "after": after,
        "wait_after": np.where(after, wait, 0.0),
        "others": eligible & ~after,
        "wait_others": np.where(eligible & ~after, wait, 0.0),
    }
    made = pd.DataFrame(
        {name: np.bincount(prompt, weights=each, minlength=num_prompts) for name, each in columns.items()},
        index=list(dict.fromkeys(key[0] for key in table.keys)),
        dtype=float,
    )
    beside = frames.finished(run, frames.own_arm(run)).groupby("sample_id")["concurrent_discarded_draft"].sum()
    made["thrown_seconds"] += beside.reindex(made.index).fillna(0.0)  # NaN, without another process, counts as 0
    return made


def rollbacks_of(comparison: Comparison, run: int, resamples: int = RESAMPLES) -> Rollbacks:
    """All figures of one run, on the comparison's prompts."""
    sums = sums_by_prompt(comparison, run)
    table, values = comparison.rounds(run), np.ascontiguousarray(sums)
    totals: Sums = dict(zip(sums, values.sum(0)[:, None], strict=True))
    draws = stats.bootstrap_totals(values, resamples, np.random.default_rng(0)) if len(sums) > 1 else None
    drawn: Sums | None = None if draws is None else dict(zip(sums, draws.T, strict=True))

    def estimate(ratio: Callable[[Sums], FloatArray]) -> Estimate | None:
        with np.errstate(invalid="ignore", divide="ignore"):
            value = float(ratio(totals)[0])
            found = np.zeros(0) if drawn is None else ratio(drawn)
        found = found[np.isfinite(found)]
        if not np.isfinite(value):
            return None
        return Estimate(value, *stats.percentile_interval(found)) if len(found) > 1 else Estimate(value)

    def extra(t: Sums) -> FloatArray:
        return t["wait_after"] / t["after"] - t["wait_others"] / t["others"]

    waits = bool(table.wait_seconds.any())
    return Rollbacks(
        per_100_tokens=estimate(lambda t: 100 * t["rollbacks"] / t["tokens"]),
        share_of_rounds=estimate(lambda t: t["rollbacks"] / t["rounds"]),
        depth=estimate(lambda t: t["discarded"] / t["rollbacks"]),
        discarded_per_100=estimate(lambda t: 100 * t["discarded"] / t["tokens"]),
        stale_per_100=estimate(lambda t: 100 * t["stale"] / t["tokens"]),
        thrown_ms_per_token=estimate(lambda t: 1e3 * t["thrown_seconds"] / t["tokens"]),
        thrown_percent=estimate(lambda t: 100 * t["thrown_seconds"] / t["decode_seconds"]),
        extra_wait_ms=estimate(lambda t: 1e3 * extra(t)) if waits else None,
        wait_percent=estimate(lambda t: 100 * extra(t) * t["after"] / t["decode_seconds"]) if waits else None,
        largest=int(table.num_discarded.max(initial=0)),
    )
