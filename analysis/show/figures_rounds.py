"""Figures about rounds: acceptance by position, distribution of accepted lengths, rollbacks along the sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from specbench.analysis.derive.conditions import Group
from specbench.analysis.derive.derive import Comparison, acceptance_by_position, prompts_of, shares_by_prompt
from specbench.analysis.derive.ranking import fastest
from specbench.analysis.read.frames import Frames
from specbench.analysis.show.style import MAX_SERIES, Drawing, bar, errors, legend_below, looks, new_figure, styled
from specbench.measure.metrics import RoundTable

MIN_ROUNDS = 20  # a position that fewer rounds reached is not drawn
BINS = 12  # at most; fewer where the rounds would be spread too thin
RESAMPLES = 1_000


def drafting_runs(comparison: Comparison) -> list[tuple[int, str]]:
    """Runs of the comparison that drafted something, at most as many as there are line styles: the fastest ones."""
    runs = fastest(comparison.runs[comparison.runs["acceptance_rate"].notna()], MAX_SERIES)
    return [(run, str(facts["label"])) for run, facts in runs.iterrows()]


def _looks(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """Of all its runs by label, shown or not: what is left out changes no look."""
    return looks(map(str, comparison.runs["label"]), map(str, comparison.runs["method"]))


def _left(comparison: Comparison, shown: Sequence[tuple[int, str]]) -> str:
    total = int(comparison.runs["acceptance_rate"].notna().sum())
    return f" The {len(shown)} fastest of {total} runs, ranked ones first." if total > len(shown) else ""


def acceptance(frames: Frames, group: Group, comparison: Comparison) -> Drawing | None:
    """Two panels: the share of rounds that accept at least k drafts, and the share that accepts the k-th given the others."""
    runs = drafting_runs(comparison)
    if not runs:
        return None
    parts, look = [], _looks(comparison)
    with styled():
        figure, axes = new_figure(1, 2, height=3.2, sharey=True)
        for number, (run, label) in enumerate(runs):
            frame = acceptance_by_position(comparison.rounds(run))
            frame.insert(0, "method", label)
            parts.append(frame)
            shift = 0.06 * (number - (len(runs) - 1) / 2)
            for axis, name, prefix, judged in (
                (axes[0, 0], "accepted", "", "rounds"),
                (axes[0, 1], "conditional", "conditional_", "eligible"),
            ):
                seen = frame[frame[judged] >= MIN_ROUNDS]
                bars = errors(seen[name], seen[f"{prefix}low"], seen[f"{prefix}high"])
                axis.errorbar(seen["position"] + shift, seen[name], bars, label=label, **look[label])
        axes[0, 0].set_title("at least k drafts accepted")
        axes[0, 1].set_title("k-th accepted, given all before")
        deepest = max((k for part in parts for k in part["position"][part["rounds"] >= MIN_ROUNDS]), default=1)
        ticks = np.arange(1, deepest + 1, max(1, deepest // 8))
        for axis in axes.flat:
            axis.set(xlim=(0.5, deepest + 0.5), ylim=(0, 1.02), xticks=ticks, xlabel="position k in the draft")
        axes[0, 0].set_ylabel("share of rounds that reach k")
        legend_below(figure)
    caption = (
        "Acceptance by position in the draft (depth, for trees) with 95 % bootstrap intervals over prompts. "
        f"Positions that fewer than {MIN_ROUNDS} rounds reached are in the CSV only.{_left(comparison, runs)}"
    )
    frame = pd.concat(parts)
    return Drawing.of_cell("acceptance_by_position", "Acceptance by position", figure, frame, caption, group, comparison)


def accepted_lengths(frames: Frames, group: Group, comparison: Comparison) -> Drawing | None:
    """How many rounds accepted how many drafts: grouped bars of shares, intervals over prompts."""
    runs = drafting_runs(comparison)
    if not runs:
        return None
    parts = []
    for run, label in runs:
        table = comparison.rounds(run)
        counts = _count(table, table.num_accepted, int(table.num_accepted.max(initial=0)) + 1)
        share, low, high = shares_by_prompt(counts, np.repeat(counts.sum(1, keepdims=True), counts.shape[1], 1), RESAMPLES)
        made = {"method": label, "accepted": np.arange(counts.shape[1]), "rounds": counts.sum(0), "share": share}
        parts.append(pd.DataFrame(made | {"low": low, "high": high}))
    frame = pd.concat(parts, ignore_index=True)
    top = int(frame.loc[frame["share"] >= 0.002, "accepted"].max())
    with styled():
        figure, axes = new_figure(height=3.0)
        axis = axes[0, 0]
        width, methods = 0.84 / len(runs), [str(comparison.runs.at[run, "method"]) for run, _ in runs]
        look = _looks(comparison)
        fills = [bar(look[label]["color"], methods[:i].count(methods[i])) for i, (_, label) in enumerate(runs)]
        for number, part in enumerate(parts):
            seen = part[part["accepted"] <= top]
            at = seen["accepted"] + width * (number - (len(runs) - 1) / 2)
            axis.bar(at, seen["share"], width, label=runs[number][1], **fills[number])
            bars = errors(seen["share"], seen["low"], seen["high"])
            axis.errorbar(at, seen["share"], bars, fmt="none", ecolor="black", elinewidth=0.7, capsize=1.2)
        axis.set(xlabel="draft tokens accepted in a round", ylabel="share of rounds")
        axis.set_xticks(np.arange(0, top + 1, max(1, top // 16)))
        axis.grid(axis="x", visible=False)
        legend_below(figure)
    caption = (
        "Distribution of accepted draft tokens per round (the target's own token not counted) with 95 % bootstrap intervals "
        f"over prompts.{_left(comparison, runs)}"
    )
    return Drawing.of_cell("accepted_lengths", "Accepted lengths", figure, frame, caption, group, comparison)


def _count(table: RoundTable, column: np.ndarray, num_columns: int, weights: np.ndarray | int = 1) -> np.ndarray:
    """[P, num_columns]: how many rounds of each prompt (or how much of `weights`) fall into each column."""
    prompt, num_prompts = prompts_of(table)
    counts = np.zeros((num_prompts, num_columns))
    np.add.at(counts, (prompt, column), weights)
    return counts


def _progress(table: RoundTable) -> np.ndarray:
    """Output position at the start of every round; the prefill's token is position 0."""
    emitted = table.num_emitted.astype(np.int64)
    before = np.cumsum(emitted) - emitted
    first = np.searchsorted(table.sample, np.arange(len(table.keys)))
    base = np.append(before, 0)[np.minimum(first, len(before))]
    return np.asarray(before - base[table.sample] + 1)


def rollbacks(frames: Frames, group: Group, comparison: Comparison) -> Drawing | None:
    """Share of rounds that throw drafts away, along the output."""
    runs = [(run, label) for run, label in drafting_runs(comparison) if comparison.runs.at[run, "rollbacks"] > 0]
    if not runs:
        return None
    longest = max(int(frames.samples_of(run)["num_output_tokens"].max()) for run, _ in runs)
    fewest = min(len(comparison.rounds(run)) for run, _ in runs)
    bins_wanted = int(np.clip(fewest / (3 * MIN_ROUNDS), 3, BINS))
    edges = np.unique(np.linspace(1, max(2, longest), bins_wanted + 1).astype(int))
    parts = []
    for run, label in runs:
        table = comparison.rounds(run)
        bins = np.clip(np.searchsorted(edges, _progress(table), side="right") - 1, 0, len(edges) - 2)
        rounds = _count(table, bins, len(edges) - 1)
        thrown = _count(table, bins, len(edges) - 1, table.num_discarded > 0)
        share, low, high = shares_by_prompt(thrown, rounds, RESAMPLES, MIN_ROUNDS)
        made = {"method": label, "from_token": edges[:-1], "to_token": edges[1:], "rounds": rounds.sum(0)}
        parts.append(pd.DataFrame(made | {"rollbacks": thrown.sum(0), "share": share, "low": low, "high": high}))
    if not any((part["rounds"] >= MIN_ROUNDS).any() for part in parts):
        return None
    with styled():
        figure, axes = new_figure(height=3.0)
        axis, look = axes[0, 0], _looks(comparison)
        for number, part in enumerate(parts):
            seen_part = part[part["rounds"] >= MIN_ROUNDS]
            if seen_part.empty:  # a name without a line would look for one
                continue
            middle = (seen_part["from_token"] + seen_part["to_token"]) / 2
            style = look[runs[number][1]]
            axis.fill_between(middle, seen_part["low"], seen_part["high"], color=style["color"], alpha=0.13, linewidth=0)
            axis.plot(middle, seen_part["share"], label=runs[number][1], **style)
        axis.set(xlabel="position in the output (tokens)", ylabel="share of rounds with a rollback", ylim=(0, 1.02))
        axis.set_xlim(edges[0], edges[-1])
        legend_below(figure)
    caption = (
        "Share of rounds that threw drafted tokens away, by output position, with 95 % bootstrap bands over prompts. Stretches "
        f"with fewer than {MIN_ROUNDS} rounds are in the CSV only.{_left(comparison, runs)}"
    )
    return Drawing.of_cell("rollbacks", "Rollbacks along the sequence", figure, pd.concat(parts), caption, group, comparison)
