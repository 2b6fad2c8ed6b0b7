"""How much each warning of a run weighs: the one place that says so, for the terminal, summary.json and reports alike.

    unusable   the number does not mean what it seems to mean: other text, other data, acceptance that was set
    doubtful   it may lie beside the truth by more than its interval says
    usual      what most runs have to say; the interval or the caption already allows for it

A warning is a sentence, recognised by a phrase that its author keeps; one that nobody listed here is doubtful.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

UNUSABLE, DOUBTFUL, USUAL = LEVELS = ("unusable", "doubtful", "usual")
PHRASES: dict[str, tuple[str, ...]] = {  # regular expressions, the heaviest first
    UNUSABLE: (
        "^outputs differ from the baseline's",
        "^(method|baseline): its clocks account for ",
        "^stand-in data, not ",
        "^the draft replays the target's text",
        "take turns: correct, but no basis for speed$",
        r"^mixed conditions \(allow_mixed=true\)",
    ),
    DOUBTFUL: (
        "^the method is lossy",
        r" samples failed \(",
        "cannot be verified; the run's data name is ",
        "^other processes kept .* busy while ",
        "^other processes on device ",
        "^another run measured on ",
        " was in use by another run ",
        " was throttled ",
        r"^(method|baseline): became .* over the run \(drift\)",
        "^the arms emitted different numbers of tokens",
        "^measured in .* sessions: ",
        " left out: failed, too long, ",
        " is a variant of ",
        "integrated power differs from the energy counter",
    ),
    USUAL: (
        "^the packages of pair=smollm2, the default, are not installed",
        "^only .*: intervals over fewer than ",
        " has no answers: data.grade=",
        " declares no checksum; ",
        "^(method|baseline): times of one prompt spread by ",
        " warmed by .* degrees C ",
        "^energy blocks as short as ",
    ),
}
_PLACES = [(level, re.compile(phrase)) for level, phrases in PHRASES.items() for phrase in phrases]
_UNKNOWN = sum(len(PHRASES[level]) for level in (UNUSABLE, DOUBTFUL)) - 0.5  # behind the doubtful ones
_NUMBER = re.compile(r"(?<![\w.])[+-]?\d[\d,]*(?:\.\d+)?")


def level_of(warning: str) -> str:
    """unusable, doubtful or usual."""
    return next((level for level, phrase in _PLACES if phrase.search(warning)), DOUBTFUL)


def makes_unusable(warnings: Iterable[str]) -> bool:
    """Whether a run says of itself that its numbers do not mean what they seem to mean: it leads nothing."""
    return any(level_of(warning) == UNUSABLE for warning in warnings)


def is_known(warning: str) -> bool:
    return any(phrase.search(warning) for _, phrase in _PLACES)


def in_order(warnings: Iterable[str]) -> list[str]:
    """Each once, what makes a number unusable first."""
    return sorted(dict.fromkeys(warnings), key=_place)


def _place(warning: str) -> float:
    return next((place for place, (_, phrase) in enumerate(_PLACES) if phrase.search(warning)), _UNKNOWN)


@dataclass(frozen=True)
class Kind:
    """What several runs say in one sentence but for its numbers. text: with the span of each number. sources: who says it."""

    level: str
    text: str
    sources: tuple[str, ...]


def kinds(warnings: Mapping[str, Iterable[str]]) -> list[Kind]:
    """The warnings of many runs, by the name of each, as one sentence a kind, in order."""
    found: dict[str, list[tuple[str, str]]] = {}  # skeleton -> (source, warning)
    for source, said in warnings.items():
        for warning in said:
            found.setdefault(_NUMBER.sub("#", warning), []).append((source, warning))
    alike = sorted(found.values(), key=lambda said: _place(said[0][1]))
    return [
        Kind(level_of(said[0][1]), _spans([warning for _, warning in said]), tuple(dict.fromkeys(s for s, _ in said)))
        for said in alike
    ]


def _spans(alike: list[str]) -> str:
    """One text of those that differ in numbers alone, each number that differs as `least to largest`."""
    columns = list(zip(*(_NUMBER.findall(text) for text in alike), strict=True))

    def span(column: tuple[str, ...]) -> str:
        ends = sorted(set(column), key=lambda number: float(number.replace(",", "")))
        return ends[0] if len(ends) == 1 else f"{ends[0]} to {ends[-1]}"

    words = _NUMBER.split(alike[0])
    return "".join(word + (span(columns[i]) if i < len(columns) else "") for i, word in enumerate(words))
