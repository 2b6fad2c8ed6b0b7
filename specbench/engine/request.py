"""What a method is asked, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from specbench.measure.records.events import Round

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Request:
    """One prompt to continue. `noise_key` keys the sampling noise (seed, sample, turn); positions count output tokens."""

    sample_id: str
    turn: int
    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    eos_ids: frozenset[int]
    noise_key: int


NOBODYS = Request("", 0, (0,), 1, frozenset(), 0)  # what a draft is told before it is timed


@dataclass
class Outcome:
    """One continuation: ids after the EOS and length cut, why it ended, and how the time went."""

    output_ids: list[int]
    finish_reason: str  # "eos" | "length"
    prefill_seconds: float
    decode_seconds: float
    rounds: list[Round]
    concurrent_seconds: dict[str, float] = field(default_factory=dict)  # {draft, discarded_draft, idle}, disjoint
    started_at: float | None = None  # when decoding began, on the machine's monotonic clock
    counted: dict[str, float] = field(default_factory=dict)  # what the method counted beside its rounds: see `SampleRecord`
    spans: list[tuple[float, float, str]] = field(default_factory=list)  # what workers did, on the rounds' clock; with trace


def cut(tokens: list[int], room: int, eos_ids: frozenset[int]) -> tuple[list[int], str | None]:
    """Cut newly committed tokens at the first EOS (kept) and at `room` tokens; the reason if generation is over."""
    for index, token in enumerate(tokens[:room]):
        if token in eos_ids:
            return tokens[: index + 1], "eos"
    if len(tokens) >= room:
        return tokens[:room], "length"
    return tokens, None
