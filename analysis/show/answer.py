"""What a report answers first, in three lines: what was fastest, by how much, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from specbench.analysis.derive.conditions import Group
from specbench.analysis.derive.derive import Comparison, Estimate, is_ranked, ratio_of_speedups
from specbench.analysis.show.members import Member, members
from specbench.analysis.show.run_tables import told_from_one
from specbench.measure.warnings import DOUBTFUL, LEVELS, kinds

MAX_CELLS = 3  # pairs x data sets that three lines have room for


@dataclass(frozen=True)
class _Best:
    """Of one pair and data set: the fastest ranked run, the next one, and how far it is ahead of that."""

    place: str
    first: Member
    first_speed: Estimate
    second: Member | None
    ahead: Estimate | None
    is_clear: bool

    @property
    def name(self) -> str:
        return str(self.first.facts["label"])

    @property
    def wins(self) -> bool:
        return self.is_clear and self.first_speed.value > 1


def answer(group: Group, comparisons: Sequence[Comparison]) -> list[tuple[str, str]]:
    """Three lines, each a few words and a sentence; none where no run has a speed-up that may be ranked."""
    several_pairs = len({c.pair for c in comparisons}) > 1
    found = [
        best for c in comparisons if (best := _best(group, c, f"{c.data} ({c.pair})" if several_pairs else c.data)) is not None
    ]
    if not found:
        return []
    baseline, shown = str(group.conditions.get("baseline")), found[:MAX_CELLS]
    more = f" And {len(found) - len(shown)} more below." if len(found) > len(shown) else ""
    fastest = "; ".join(
        f"on {b.place} {b.name}" if b.wins else f"on {b.place} nothing that is surely faster than {baseline}" for b in shown
    )
    return [
        ("What was fastest?", f"{fastest[:1].upper()}{fastest[1:]}.{more}"),
        ("By how much?", " ".join(f"On {b.place}: {_distance(b, baseline)}." for b in shown)),
        ("How sure?", f"{_sureness(shown, comparisons)} {_weight(comparisons)}"),
    ]


def _best(group: Group, comparison: Comparison, place: str) -> _Best | None:
    ranked = [m for m in members(comparison) if is_ranked(m.facts) and m.speedup is not None]
    if not ranked:
        return None
    first, *others = sorted(ranked, key=lambda m: m.speedup.value if m.speedup else 0.0, reverse=True)
    second = others[0] if others else None
    ahead = None if second is None else ratio_of_speedups(first.pairs, second.pairs)
    assert first.speedup is not None
    return _Best(place, first, first.speedup, second, ahead, told_from_one(group, comparison, first.run) == "yes")


def _distance(best: _Best, baseline: str) -> str:
    text = f"{best.name} decodes {_shown(best.first_speed)} times as fast as {baseline}"
    if best.second is None or best.ahead is None:
        return text
    return f"{text} and {_shown(best.ahead)} times as fast as the next, {best.second.facts['label']}"


def _shown(estimate: Estimate) -> str:
    ends = "" if estimate.interval is None else f" [{estimate.low:.2f}, {estimate.high:.2f}]"
    return f"{estimate.value:.2f}{ends}"


def _sureness(shown: Sequence[_Best], comparisons: Sequence[Comparison]) -> str:
    numbers = sorted({len(c.prompts) for c in comparisons if c.prompts})
    prompts = " to ".join(str(n) for n in dict.fromkeys((numbers[0], numbers[-1]))) if numbers else "?"
    apart = [b.place for b in shown if b.ahead is not None and b.ahead.interval and b.ahead.interval[0] > 1]
    close = [b.place for b in shown if b.second is not None and b.place not in apart]
    lead = f"The lead over the next is clear on {_joined(apart)}" if apart else "No lead over the next method is clear"
    lead += f", not on {_joined(close)}" if apart and close else ""
    repeats = [(b, b.first.comparison.speedup_over_repeats(b.first.run)) for b in shown if b.wins]
    noisy = [f"{b.name} on {b.place}" for b, ends in repeats if ends is not None and ends[0] <= 1 <= ends[1]]
    lead += f". Over repeats, this machine's noise, the interval of {_joined(noisy)} contains 1" if noisy else ""
    runs = [m for c in comparisons for m in members(c)]
    same = sum(m.facts["verdict"] in ("identical", "numerical_tie") for m in runs)
    lead = lead if any(b.second for b in shown) else "No two methods were run on the same prompts"
    return (
        f"Brackets are 95 % intervals over {prompts} prompts. {lead}. Output as the baseline's in {same} of {len(runs)} runs."
    )


def _weight(comparisons: Sequence[Comparison]) -> str:
    """The heaviest thing that the runs warn of."""
    said = {
        str(facts["folder"]): c.frames.summaries[int(run)].get("warnings", ())
        for c in comparisons
        for run, facts in c.runs.iterrows()
    }
    found = [kind for kind in kinds(said) if LEVELS.index(kind.level) <= LEVELS.index(DOUBTFUL)]
    if not found:
        return "No run warns of more than the usual."
    first = found[0]
    return f"Warned of, {first.level} ({len(first.sources)} of {len(said)} runs): {first.text}."


def _joined(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
