"""What the formulas (`measure.theory`) promise for the times and acceptance that a run measured, beside what it reached.

All times are measured in the run itself: t_AR per token of the baseline's rounds, t_draft per forward of the draft, t_verify
per forward of the target. alpha is the maximum-likelihood estimate from the rounds, in which a chain's end censors the count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from specbench.analysis.read.frames import Frames
from specbench.analysis.read.shape import entry
from specbench.measure.metrics import RoundTable
from specbench.measure.theory import formulas
from specbench.measure.theory.formulas import FORESEEING, FREE_RUNNING, LOCKSTEP, SEQUENTIAL

HIT, MISS = "hit", "miss"  # phases of rounds whose draft was prepared before the verdict, or after it

COLUMNS = {
    "alpha": "i.i.d. acceptance: accepted over (accepted + rejected) drafts that were judged",
    "gamma": "mean drafted depth of the rounds that drafted",
    "t_ar_ms": "the baseline's time per token",
    "t_draft_ms": "time per forward of the draft",
    "t_verify_ms": "time per verifying forward of the target",
    "emitted_theory": "tokens per round of the formula that fits the schedule",
    "emitted_measured": "tokens per round of the run",
    "speedup_sequential": "the sequential formula with the measured t_verify",
    "speedup_flat": "the same where verifying costs no more than one token (t_verify = t_AR): Leviathan's own assumption",
    "speedup_lockstep": "PEARL's formula",
    "bound_free_running": "t_AR / t_draft",
    "speedup_free_running": "AMUSD's schedule played with the run's options; NaN where these are not its own",
    "hits": "share of the verdicts that the draft had foreseen, of those that left room for a draft",
    "speedup_foreseeing": "SSD's formula with the measured share of hits",
    "speedup_measured": "the run's ratio of totals",
    "schedule": "sequential, lockstep, free-running or foreseeing: which formula fits the run",
    "predicted": "that formula's speed-up (for free-running: as played, or else the bound)",
    "reached": "measured speed-up over that one",
}


def acceptance_iid(table: RoundTable) -> float | None:
    """alpha from rounds: a round that stops before its depth saw one rejection; one that reaches it, or that the output's end
    cut, saw none."""
    accepted, rejected = int(table.num_accepted.sum()), int(table.rejected.sum())
    return accepted / (accepted + rejected) if accepted + rejected else None


def is_chain(table: RoundTable) -> bool:
    """Whether every draft was a chain: the formulas know no trees."""
    return bool((table.num_drafted == table.draft_depth).all())


@dataclass(frozen=True)
class MeasuredTimes:
    """Measured seconds: per baseline token, per draft forward, per verifying forward, per emitted token of the method."""

    ar: float
    draft: float
    verify: float


def times_of(frames: Frames, run: int, mine: RoundTable) -> MeasuredTimes | None:
    """None where a part was not measured (no baseline rounds, no draft forwards)."""
    baseline = frames.table(run, "baseline")
    forwards = int(mine.num_draft_forwards.sum())
    if frames.runs.at[run, "baseline"] != "autoregressive" or not len(baseline) or not len(mine) or not forwards:
        return None
    others = [float(frames.runs.at[run, f"concurrent_{part}"]) for part in ("draft", "discarded_draft")]
    drafting = float(mine.draft_seconds.sum()) + float(np.nansum(others))  # NaN: there is no other process
    ar = float((baseline.t_end - baseline.t_start).sum()) / int(baseline.num_emitted.sum())
    return MeasuredTimes(ar, drafting / forwards, float(mine.verify_seconds.sum()) / len(mine))


def schedule_of(frames: Frames, run: int, mine: RoundTable) -> str:
    """By what the records show: another process drafted (named phases: in lockstep, or ahead) or the target's waited for it."""
    if np.isnan(frames.runs.at[run, "concurrent_draft"]):
        return SEQUENTIAL
    phases = set(mine.phase.tolist())
    if phases & {HIT, MISS}:
        return FORESEEING
    return LOCKSTEP if any(phases) else FREE_RUNNING


def hits_of(mine: RoundTable) -> float:
    """Share of hits among the rounds that say whether their draft was foreseen; NaN where none does."""
    phases = mine.phase.tolist()
    hits, misses = phases.count(HIT), phases.count(MISS)
    return hits / (hits + misses) if hits + misses else float("nan")


def played_free(frames: Frames, run: int, alpha: float, c: float, v: float) -> float:
    """The free-running schedule with the run's options; NaN where they name none that is known, or another policy."""
    asked = entry(frames.facts[run], "config.method") or {}
    length = asked.get("draft_length")
    if length == "auto":
        length = entry(frames.facts[run], "method_facts.method.draft_length")
    ahead = asked.get("max_lookahead")
    if asked.get("stop") or asked.get("stale", "plain") != "plain" or not isinstance(length, int) or not isinstance(ahead, int):
        return float("nan")
    return formulas.speedup_free_running(alpha, c, v, length, ahead)


def theory(frames: Frames, runs: pd.Index | None = None) -> pd.DataFrame:
    """One row per run of chain drafts with a measured draft and an autoregressive baseline; columns as in COLUMNS."""
    found = {}
    for run in map(int, frames.runs.index if runs is None else runs):
        if ("theory", run) not in frames.cache:
            frames.cache["theory", run] = _line(frames, run)
        found[run] = frames.cache["theory", run]
    known = {run: line for run, line in found.items() if line is not None}
    return pd.DataFrame.from_dict(known, orient="index", columns=list(COLUMNS))


def _line(frames: Frames, run: int) -> dict[str, object] | None:
    """One run's row; None where the formulas do not apply: they know one draft, and no chain of them."""
    if (entry(frames.facts[run], "method_facts.method.num_processes") or 2) > 2:
        return None
    mine = frames.table(run, frames.own_arm(run))
    alpha = acceptance_iid(mine) if len(mine) and is_chain(mine) else None
    times = times_of(frames, run, mine) if alpha is not None else None
    if alpha is None or times is None or times.draft <= 0 or times.ar <= 0:
        return None
    gamma = float(mine.draft_depth[mine.draft_depth > 0].mean())
    c, v = times.draft / times.ar, times.verify / times.ar
    schedule, hits = schedule_of(frames, run, mine), hits_of(mine)
    bound = formulas.bound_free_running(c)
    played = played_free(frames, run, alpha, c, v) if schedule == FREE_RUNNING else float("nan")
    predicted = {
        SEQUENTIAL: formulas.speedup_sequential(alpha, gamma, c, v),
        LOCKSTEP: formulas.speedup_lockstep(alpha, gamma, c, v),
        FREE_RUNNING: played if played == played else bound,
        FORESEEING: formulas.speedup_foreseeing(alpha, gamma, c, v, hits),
    }
    measured = float(frames.runs.at[run, "speedup"])
    return {
        "alpha": alpha,
        "gamma": gamma,
        "t_ar_ms": 1e3 * times.ar,
        "t_draft_ms": 1e3 * times.draft,
        "t_verify_ms": 1e3 * times.verify,
        "emitted_theory": formulas.emitted_lockstep(alpha, gamma)
        if schedule == LOCKSTEP
        else formulas.emitted_sequential(alpha, gamma),
        "emitted_measured": float(frames.runs.at[run, "emitted_per_round"]),
        "speedup_sequential": predicted[SEQUENTIAL],
        "speedup_flat": formulas.speedup_sequential(alpha, gamma, c),
        "speedup_lockstep": predicted[LOCKSTEP],
        "bound_free_running": bound,
        "speedup_free_running": played,
        "hits": hits,
        "speedup_foreseeing": predicted[FORESEEING],
        "speedup_measured": measured,
        "schedule": schedule,
        "predicted": predicted[schedule],
        "reached": measured / predicted[schedule],
    }
