"""The books of one sample: its output, its rounds, and where the time went. The one place that makes a `Round`.

Time: a clock that reads its stamps when the sample is over (on CUDA they are events, and nothing waits for them inside the
loop). `stamp(part)` says what the time since the last stamp was spent on; `add(part, seconds)` books what somebody else timed.
A round reaches from the end of the one before to its own.
"""

from __future__ import annotations

from typing import Any

from specbench.engine.request import Outcome, Request, cut
from specbench.engine.tree import DraftTree, Verdict
from specbench.measure.records.events import PARTS, Round
from specbench.measure.sensors.clock import CudaClock, HostClock, now


class Books:
    """output, finish: what is committed so far, and why it ended (None while it has not). One per sample."""

    def __init__(self, request: Request, clock: HostClock | CudaClock | None = None):
        self.request, self._clock = request, clock or HostClock()
        self.output: list[int] = []
        self.finish: str | None = None
        self.draft_version = 0
        self._stamps: list[Any] = []
        self._spent: list[str] = []  # on what the time up to each stamp was spent
        self._added: list[dict[str, float]] = [{}]  # by round, seconds that others timed
        self._rounds: list[dict[str, Any]] = []
        self._ends: list[int] = []  # by round, the number of its last stamp
        self._kept: list[int] | None = None  # emitted, and not in a round yet
        self.started_at = 0.0

    @property
    def finished(self) -> bool:
        return self.finish is not None

    @property
    def position(self) -> int:
        """Output position of the next token."""
        return len(self.output)

    @property
    def room(self) -> int:
        """Tokens that a draft can have kept: the output's last one is always the target's own."""
        return self.request.max_new_tokens - len(self.output) - 1

    @property
    def num_rounds(self) -> int:
        return len(self._rounds)

    # In the order in which a schedule calls them.

    def start(self) -> None:
        """The prompt's ids are at hand: prefill begins."""
        self._clock.synchronize()
        self.stamp("other")

    def first(self, token: int) -> None:
        """The prefill's token."""
        self.output, self.finish = cut([token], self.request.max_new_tokens, self.request.eos_ids)

    def decode(self) -> None:
        """Prefill is over, the drafter's own included: the first round begins."""
        self.stamp("prefill")
        self.started_at = now()

    def stamp(self, part: str) -> None:
        """The time since the last stamp went to `part`: one of `PARTS`, or anything else, which is nobody's."""
        self._stamps.append(self._clock.stamp())
        self._spent.append(part)

    def add(self, part: str, seconds: float) -> None:
        """Book time of the current round that was measured elsewhere."""
        booked = self._added[-1]
        booked[part] = booked.get(part, 0.0) + seconds

    def emit(self, tokens: tuple[int, ...]) -> list[int]:
        """Commit a verdict's tokens; returns those that the EOS and length cut leaves."""
        self._kept, self.finish = cut(list(tokens), self.request.max_new_tokens - len(self.output), self.request.eos_ids)
        self.output += self._kept
        return self._kept

    def round(self, tree: DraftTree, verdict: Verdict, **facts: Any) -> None:
        """Write a round down. facts: columns of `Round` that tree and verdict do not say, or say differently here."""
        kept = self.emit(verdict.tokens) if self._kept is None else self._kept
        self._kept = None
        # Accepted is what stands in the output: drafts that the rule took behind its end were never kept.
        drafted, accepted, depth = len(tree.tokens), min(verdict.num_accepted, len(kept)), tree.depth
        riders = 0 if tree.riders is None else len(tree.riders)
        row = {
            "num_drafted": drafted,
            "num_accepted": accepted,
            "num_emitted": len(kept),
            "num_discarded": drafted - accepted + tree.num_wasted,
            "num_target_rows": 1 + drafted + riders,
            "num_draft_forwards": tree.num_forwards,
            "draft_depth": depth,
            "rollback_depth": depth - accepted + tree.num_wasted,
            "stale": tree.stale,
            "phase": tree.phase,
            "num_rider_rows": riders,
            "draft_version": self.draft_version,
        }
        self._rounds.append(row | facts)

    def end_round(self, part: str = "other") -> None:
        """Everything about the round is done; the time since the last stamp went to `part`."""
        self.stamp(part)
        self._ends.append(len(self._stamps) - 1)
        self._added.append({})

    def amend(self, number: int, **facts: Any) -> None:
        """What is known of a round only later (from another process)."""
        self._rounds[number] |= facts

    def of_rounds(self, column: str) -> list[Any]:
        return [row[column] for row in self._rounds]

    @property
    def decode_start(self) -> float:
        """When decoding began, in the clock's own stamps."""
        start: float = self._stamps[1]
        return start

    def outcome(self, **more: Any) -> Outcome:
        """The sample's outcome. more: fields of `Outcome` that the schedule knows better."""
        assert self.finish is not None and len(self._ends) == len(self._rounds), "a round was not ended"
        seconds = self._clock.seconds(self._stamps)
        zero, at, rounds = seconds[1], 1, []
        for row, end, added in zip(self._rounds, self._ends, self._added, strict=False):
            spent = dict.fromkeys(PARTS, 0.0)
            for number in range(at + 1, end + 1):
                if self._spent[number] in spent:
                    spent[self._spent[number]] += seconds[number] - seconds[number - 1]
            for part, value in added.items():
                spent[part] += value
            times: dict[str, Any] = {f"{part}_seconds": value for part, value in spent.items()}
            rounds.append(Round(t_start=seconds[at] - zero, t_end=seconds[end] - zero, **row, **times))
            at = end
        fields: dict[str, Any] = {
            "output_ids": self.output,
            "finish_reason": self.finish,
            "prefill_seconds": zero - seconds[0],
            "decode_seconds": seconds[-1] - zero,
            "rounds": rounds,
            "started_at": self.started_at,
        }
        return Outcome(**(fields | more))
