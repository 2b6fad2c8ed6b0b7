"""What the foreseeing schedule's sides order, prepare and report."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from specbench.parts.schedules.sides import SideReport
from specbench.processes.steps import Order

FALLBACKS = ("draft", "lookup")
HIT, MISS, LAST = "hit", "miss", "last"  # phases of rounds; last: there was no room for a draft, so nothing to foresee


@dataclass(frozen=True)
class Plan(Order):
    """One sample. budget: branches prepared at a time."""

    budget: int


@dataclass(slots=True)
class Forward:
    """One of the draft's: when, how many tokens came of it, and how many of these the output kept."""

    start: float
    end: float
    made: int
    kept: int = 0


@dataclass(slots=True)
class Branch:
    """A draft for one verdict. above: the row that it hangs on; position: of `bonus`, the target's own token, in the output;
    limit: tokens at most; rows: of what is fed, `bonus` first; logits: [1, vocab] behind each."""

    above: int
    bonus: int
    position: int
    limit: int
    rows: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    forwards: list[Forward] = field(default_factory=list)
    complete: bool = False


@dataclass
class RoundReport:
    """What the draft's side knows of a round."""

    phase: str
    num_forwards: int


@dataclass
class DraftReport(SideReport):
    """num_unused: tokens prepared for verdicts that did not come."""

    num_unused: int = 0
    rounds: list[RoundReport] = field(default_factory=list)
