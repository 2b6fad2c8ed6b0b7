"""What a report answers first, in three lines: what was fastest, by how much, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from specbench.analysis.derive.conditions import Group
from specbench.analysis.derive.derive import Comparison, Estimate, ratio_of_speedups
from specbench.analysis.derive.ranking import is_ranked, keeps_text
from specbench.analysis.show.members import Member, members
from specbench.analysis.show.run_tables import told_from_one
from specbench.config.say import counted
from specbench.measure.warnings import DOUBTFUL, LEVELS, kinds

MAX_CELLS = 4  # conditions x pairs x data sets that three lines have room for
MAX_KINDS = 3  # of warnings
MAX_TAGS = 2  # options that tell conditions apart
Part = tuple[Group, Sequence[Comparison]]


@dataclass(frozen=True)
class _Best:
    """Of one pair and data set under one set of conditions: the fastest ranked run, the next one, how far it is ahead of it."""

    place: str
    first: Member
    first_speed: Estimate
    second: Member | None
    ahead: Estimate | None
    is_clear: bool
    baseline: str

    @property
    def name(self) -> str:
        return str(self.first.facts["label"])

    @property
    def wins(self) -> bool:
        return self.is_clear and self.first_speed.value > 1


def answer(parts: Sequence[Part]) -> list[tuple[str, str]]:
    """Three lines, each a few words and a sentence; none where no run has a speed-up that may be ranked. A run whose warning
    makes it unusable never leads.

    parts: the groups, each with its comparisons. Each group has its say before one has a second.
    """
    comparisons = [comparison for _, of_group in parts for comparison in of_group]
    several_pairs = len({c.pair for c in comparisons}) > 1
    tags = conditions_in_words([group for group, _ in parts])
    found: list[tuple[int, int, _Best]] = []
    for number, (group, of_group) in enumerate(parts):
        for c in of_group:
            inside = [*([c.pair] if several_pairs else []), *tags[number]]
            best = _best(group, c, f"{c.data} ({', '.join(inside)})" if inside else c.data)
            if best is not None:
                found.append((sum(at == number for at, _, _ in found), number, best))
    if not found:
        return _nobody(comparisons)
    some = sorted(found, key=lambda one: one[:2])[:MAX_CELLS]
    shown = [best for _, _, best in sorted(some, key=lambda one: (one[1], one[0]))]
    more = f" And {len(found) - len(shown)} more below." if len(found) > len(shown) else ""
    places: dict[str, list[str]] = {}
    for b in shown:
        places.setdefault(b.name if b.wins else f"nothing that is surely faster than {b.baseline}", []).append(b.place)
    fastest = "; ".join(f"on {_joined(where)} {what}" for what, where in places.items())
    return [
        ("What was fastest?", f"{fastest[:1].upper()}{fastest[1:]}.{more}"),
        ("By how much?", " ".join(f"On {b.place}: {_distance(b)}." for b in shown)),
        ("How sure?", f"{_sureness(shown, comparisons)} {_weight(comparisons)}"),
    ]


def _nobody(comparisons: Sequence[Comparison]) -> list[tuple[str, str]]:
    """Where no run may lead: nothing to say where none has a speed-up, else what forbids it."""
    timed = [m for c in comparisons for m in members(c) if keeps_text(m.facts) and m.speedup is not None]
    if not timed:
        return []
    return [
        ("What was fastest?", "That cannot be said: every run with a speed-up has a warning that makes it unusable."),
        ("How sure?", _weight(comparisons)),
    ]


def conditions_in_words(groups: Sequence[Group]) -> list[list[str]]:
    """What tells each group from the others in a few words (`temperature=1.0`), its number where no option does."""
    if len(groups) < 2:
        return [[] for _ in groups]
    names = [name for name in groups[0].conditions if len({str(group.conditions.get(name)) for group in groups}) > 1]
    chosen = [name for name in names if name != "conditions_hash"][:MAX_TAGS]
    words = [[f"{name.removeprefix('decoding.')}={group.conditions.get(name)}" for name in chosen] for group in groups]
    return [
        own if own and words.count(own) == 1 else [*own, f"conditions {group.number}"]
        for own, group in zip(words, groups, strict=True)
    ]


def _best(group: Group, comparison: Comparison, place: str) -> _Best | None:
    ranked = [m for m in members(comparison) if is_ranked(m.facts) and m.speedup is not None]
    if not ranked:
        return None
    first, *others = sorted(ranked, key=lambda m: m.speedup.value if m.speedup else 0.0, reverse=True)
    second = others[0] if others else None
    ahead = None if second is None else ratio_of_speedups(first.pairs, second.pairs)
    assert first.speedup is not None
    clear, baseline = told_from_one(group, comparison, first.run) == "yes", str(group.conditions.get("baseline"))
    return _Best(place, first, first.speedup, second, ahead, clear, baseline)


def _distance(best: _Best) -> str:
    text = f"{best.name} decodes {_shown(best.first_speed)} times as fast as {best.baseline}"
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
    outside = [b for b in shown if b.first_speed.interval and b.first_speed.interval[0] > 1]
    repeats = [(b, b.first.comparison.speedup_over_repeats(b.first.run)) for b in outside]
    noisy = [f"{b.name} on {b.place}" for b, ends in repeats if ends is not None and ends[0] <= 1 <= ends[1]]
    runs = [m for c in comparisons for m in members(c)]
    same = sum(m.facts["verdict"] in ("identical", "numerical_tie") for m in runs)
    lead = lead if any(b.second for b in shown) else "No two methods were run on the same prompts"
    lead += f". Over repeats, this machine's noise, the interval of {_joined(noisy)} contains 1: not sure" if noisy else ""
    brackets = (
        f"Brackets are 95 % intervals over {counted(prompts, 'prompt')}" if prompts != "1" else "One prompt has no interval"
    )
    return f"{brackets}. {lead}. Output as the baseline's in {same} of {counted(len(runs), 'run')}."


def _weight(comparisons: Sequence[Comparison]) -> str:
    """What the runs warn of beyond the usual, the heaviest first."""
    said = {
        str(facts["folder"]): c.frames.summaries[int(run)].get("warnings", ())
        for c in comparisons
        for run, facts in c.runs.iterrows()
    }
    found = [kind for kind in kinds(said) if LEVELS.index(kind.level) <= LEVELS.index(DOUBTFUL)]
    if not found:
        return "No run warns of more than the usual."
    told = [
        f"{kind.level} ({len(kind.sources)} of {counted(len(said), 'run')}): {kind.text.rstrip('.')}"
        for kind in found[:MAX_KINDS]
    ]
    rest = f"; and {len(found) - MAX_KINDS} more, listed below" if len(found) > MAX_KINDS else ""
    return f"Warned of: {'; '.join(told)}{rest}."


def _joined(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
