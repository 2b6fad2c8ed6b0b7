"""What runs with drafts that are wrong on purpose (pair.draft_errors) did, beside what their script says they must do.

The script fixes which drafts are wrong, so the accepted drafts of every round follow from where it began and how many drafts it
judged; in the sequential and the lockstep schedule the rounds themselves follow too. Speeds are predicted by playing the same
script through the schedule (`measure.theory.played`) with the times that the run measured: per baseline token, per draft
forward, and per verifying forward as a straight line over its rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from specbench.analysis.derive import theory
from specbench.analysis.derive.derive import Comparison, Estimate
from specbench.analysis.read.shape import entry
from specbench.config.draft_errors import DraftErrors
from specbench.measure.metrics import RoundTable
from specbench.measure.theory import formulas, played
from specbench.measure.theory.played import Step, Times, Wrong

CLOSED_FORMS = ("never", "always", "iid")  # the formulas know errors that fall independently of each other
_Z = 1.959963984540054


@dataclass(frozen=True)
class Sample:
    """One decoded sample: which drafts its script made wrong, how long its output is, whether that ends in an EOS."""

    wrong: Wrong
    num_tokens: int
    ends: bool
    repeat: int
    rounds: np.ndarray  # of the run's table, in order


@dataclass(frozen=True)
class Scripted:
    """One run. All figures are over all repeats, unless they say otherwise.

    set_acceptance: share of right positions in the script. acceptance: accepted over judged drafts, with a 95 % Wilson
    interval over the drafts judged in the first repeat (the others have the same script). as_scripted, num_rounds: rounds that
    accepted what their script says, of all. emitted, emitted_scripted: tokens per round. closed_emitted, closed_speedup: by the
    formula of the schedule, None for errors that come in patterns; for a free-running draft closed_speedup is the bound
    t_AR / t_draft. speedup_scripted: the script played through the schedule.
    """

    errors: str
    method: str
    schedule: str
    gamma: int
    set_acceptance: float
    acceptance: Estimate
    as_scripted: int
    num_rounds: int
    emitted: float
    emitted_scripted: float
    closed_emitted: float | None
    closed_speedup: float | None
    speedup_scripted: float | None
    times: Times | None
    ar_seconds: float | None  # per token of the baseline


def errors_of(facts: dict[str, Any]) -> str | None:
    """The pattern of a run (run.json), None for a draft of its own."""
    found: str | None = entry(facts, "pair.draft.errors")
    return found


def scripted(comparison: Comparison, run: int) -> Scripted | None:
    """None for a run whose draft was not scripted, or that decoded nothing."""
    frames, facts = comparison.frames, comparison.frames.facts[run]
    text, table = errors_of(facts), comparison.rounds(run)
    if text is None or not len(table) or frames.own_arm(run) != "method":
        return None
    config = facts.get("config") or {}
    limit = int(config["decoding"]["max_new_tokens"])
    pattern, options = DraftErrors.parse(text), dict(config.get("method") or {})
    samples = list(_samples(comparison, run, table, pattern, limit))
    schedule = theory.schedule_of(frames, run, table)
    gamma = _gamma(options, facts, table)
    measured = theory.times_of(frames, run, table)
    times = None if measured is None else _times(table, measured.draft)
    ar = None if measured is None else measured.ar
    steps, seconds = _play(samples, schedule, limit, gamma, times, int(options.get("max_lookahead") or 16))
    emitted = sum(step.emitted for step in steps)
    right = [not sample.wrong(p) for sample in samples for p in range(1, sample.num_tokens)]
    alpha = 1.0 - pattern.rate if pattern.kind == "iid" else float(pattern.kind == "never")
    law = (schedule, alpha, gamma)
    independent = pattern.kind in CLOSED_FORMS
    return Scripted(
        errors=text,
        method=str(comparison.runs.at[run, "method"]),
        schedule=schedule,
        gamma=gamma,
        set_acceptance=float(np.mean(right)),
        acceptance=_acceptance(samples, table),
        as_scripted=_as_scripted(samples, table),
        num_rounds=len(table),
        emitted=int(table.num_emitted.sum()) / len(table),
        emitted_scripted=emitted / len(steps) if steps else math.nan,
        closed_emitted=formulas.closed_emitted(*law) if independent else None,
        closed_speedup=formulas.closed_speedup(*law, times, ar)
        if independent and times is not None and ar is not None
        else None,
        speedup_scripted=ar * emitted / seconds if ar is not None and seconds else None,
        times=times,
        ar_seconds=ar,
    )


# ---------------------------------------------------------------------------------------------------- parts
def _samples(comparison: Comparison, run: int, table: RoundTable, pattern: DraftErrors, limit: int) -> Iterator[Sample]:
    frame = comparison.frames.samples_of(run)
    own = frame[frame["arm"] == "method"].set_index(["sample_id", "turn", "repeat"])
    order = np.argsort(table.sample, kind="stable")
    bounds = np.searchsorted(table.sample[order], np.arange(len(table.keys) + 1))
    for number, (sample_id, turn, repeat, _) in enumerate(table.keys):
        row = own.loc[(sample_id, turn, repeat)]
        yield Sample(
            wrong=pattern.wrong_positions(sample_id, turn, limit),
            num_tokens=int(row["num_output_tokens"]),
            ends=row["finish_reason"] == "eos",
            repeat=repeat,
            rounds=order[bounds[number] : bounds[number + 1]],
        )


def _gamma(options: dict[str, Any], facts: dict[str, Any], table: RoundTable) -> int:
    """The drafts of a round: the option, what the method chose for itself, or what it drafted at most."""
    chosen = entry(facts, "method_facts.method.draft_length")
    length = options.get("draft_length")
    return int(length if isinstance(length, int) else chosen or table.num_drafted.max(initial=0))


def _as_scripted(samples: list[Sample], table: RoundTable) -> int:
    """Rounds that accepted what the script says for where they began and how many drafts they judged."""
    good = 0
    for sample in samples:
        length = 1
        for i in sample.rounds:
            expected = min(played.accepted_run(sample.wrong, length, int(table.num_drafted[i])), sample.num_tokens - length)
            good += int(table.num_accepted[i]) == expected
            length += int(table.num_emitted[i])
    return good


def _acceptance(samples: list[Sample], table: RoundTable) -> Estimate:
    whole = theory.acceptance_iid(table)
    rows = np.concatenate([s.rounds for s in samples if s.repeat == min(t.repeat for t in samples)])
    accepted = int(table.num_accepted[rows].sum())
    judged = accepted + int(table.rejected[rows].sum())
    return Estimate(math.nan if whole is None else whole, *wilson(accepted, judged))


def wilson(successes: int, trials: int) -> tuple[float, float] | tuple[None, None]:
    """95 % interval of a share (Wilson 1927); none without trials."""
    if not trials:
        return (None, None)
    share, square = successes / trials, _Z**2 / trials
    center, half = share + square / 2, _Z * math.sqrt(share * (1 - share) / trials + square / (4 * trials))
    return (max(0.0, (center - half) / (1 + square)), min(1.0, (center + half) / (1 + square)))


def _times(table: RoundTable, draft_seconds: float) -> Times:
    """Seconds of a draft forward as measured, of a verifying one as a straight line over its rows (never falling)."""
    rows, seconds = table.num_target_rows.astype(float), table.verify_seconds.astype(float)
    slope = 0.0
    if len(set(rows.tolist())) > 1:
        slope = max(0.0, float(np.polyfit(rows, seconds, 1)[0]))
    return Times(draft_seconds, float(seconds.mean()) - slope * (float(rows.mean()) - 1), slope)


def _play(
    samples: list[Sample], schedule: str, limit: int, gamma: int, times: Times | None, lookahead: int
) -> tuple[list[Step], float | None]:
    """The rounds that the script makes of all samples, and their seconds (None without measured times)."""
    made: list[Step] = []
    seconds = 0.0
    for sample in samples:
        if schedule == formulas.FREE_RUNNING:
            if times is None:
                continue
            facts = (sample.wrong, sample.num_tokens, limit, times, gamma, lookahead, sample.ends)
            steps, took = played.free_running(*facts)
            seconds += took
        elif schedule == formulas.LOCKSTEP:
            steps = played.lockstep(sample.wrong, sample.num_tokens, limit, gamma, sample.ends)
            seconds += played.lockstep_seconds(steps, times) if times is not None else 0.0
        else:
            steps = played.sequential(sample.wrong, sample.num_tokens, limit, gamma)
            seconds += played.sequential_seconds(steps, times) if times is not None else 0.0
        made += steps
    return made, seconds if times is not None else None
