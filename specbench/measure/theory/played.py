"""What a schedule does with drafts whose errors are known: rounds of the sequential and the lockstep one, which no clock moves,
and the free-running one played in virtual time.

    sequential    Leviathan et al. 2023 (2211.17192): draft gamma tokens, verify them in one forward.
    lockstep      PEARL (Liu et al. 2024, 2408.11850) in both stages: a block is drafted while the last is verified.
    free-running  AMUSD (McDanel 2024, 2410.17375): the draft never stops; the times of both models decide who is where.

`wrong(position)` says which drafts are wrong (config.draft_errors); positions count output tokens from the prefill's, 0.
The output is the target's whatever is drafted, so a position's draft is right or wrong by itself, without regard to the prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

Wrong = Callable[[int], bool]


class Step(NamedTuple):
    """A round: drafts that were judged, drafts kept, tokens kept, forwards of the draft (not counted where it runs free)."""

    drafted: int
    accepted: int
    emitted: int
    forwards: int = 0


def accepted_run(wrong: Wrong, start: int, drafted: int) -> int:
    """How many of `drafted` drafts from position `start` on are right before the first wrong one."""
    return next((i for i in range(drafted) if wrong(start + i)), drafted)


def sequential(wrong: Wrong, num_tokens: int, limit: int, gamma: int) -> list[Step]:
    """The rounds of one sample. num_tokens: length of its output; limit: what it was allowed (decoding.max_new_tokens)."""
    steps, length = [], 1
    while length < num_tokens:
        drafted = min(gamma, limit - length - 1)
        accepted = min(accepted_run(wrong, length, drafted), num_tokens - length)
        emitted = min(accepted + 1, num_tokens - length)
        steps.append(Step(drafted, accepted, emitted, drafted))
        length += emitted
    return steps


def lockstep(wrong: Wrong, num_tokens: int, limit: int, gamma: int, ends: bool = False) -> list[Step]:
    """The same for PEARL. ends: the output's last token is an EOS, behind which a draft that has it right drafts no more."""
    steps: list[Step] = []
    length, trusted = 1, 0  # committed tokens, and drafts behind them that were accepted on trust
    eos = num_tokens - 1 if ends else None
    while length < num_tokens:
        first = length + trusted
        block = max(0, min(gamma, limit - 1 - first))
        if eos is not None and not wrong(eos):
            block = max(0, min(block, eos + 1 - first))
        window = trusted + min(1, block)
        accepted = min(accepted_run(wrong, length, window), num_tokens - length)
        emitted = min(min(accepted, trusted) + 1, num_tokens - length)
        steps.append(Step(window, accepted, emitted, block))
        trusted = max(0, block - 1) if accepted == window else 0
        length += emitted
    return steps


@dataclass(frozen=True)
class Times:
    """Seconds of a draft forward, and of a target's forward: verify + row for each row beyond the first."""

    draft: float
    verify: float
    row: float = 0.0

    def target(self, rows: int) -> float:
        return self.verify + self.row * (rows - 1)


def sequential_seconds(steps: Iterable[Step], times: Times) -> float:
    return sum(step.forwards * times.draft + times.target(1 + step.drafted) for step in steps)


def lockstep_seconds(steps: Iterable[Step], times: Times) -> float:
    """A step lasts as long as the slower side: the next block's drafts, or the forward over what was accepted on trust."""
    seconds, trusted = 0.0, 0
    for step in steps:
        seconds += max(step.forwards * times.draft, times.target(1 + trusted))
        trusted = max(0, step.forwards - 1) if step.accepted == step.drafted else 0
    return seconds


def free_running(
    wrong: Wrong,
    num_tokens: int,
    limit: int,
    times: Times,
    draft_length: int = 2,
    max_lookahead: int = 16,
    ends: bool = False,
) -> tuple[list[Step], float]:
    """One sample of AMUSD (stale: plain): its rounds, and the seconds from the first token to the last.

    The target waits for `draft_length` drafts, or takes one plain step when the drafts stand on a prefix that it has left. The
    draft runs at most `max_lookahead` ahead of what it knows to be committed. Both start when the prefill's token is there, and
    messages take no time: what comes out is a little faster than any machine.
    """
    target = _Target(num_tokens, limit, times, draft_length, num_tokens - 1 if ends else None)
    draft = _Draft(wrong, target, max_lookahead)
    while target.length < num_tokens:
        assert draft.at is not None or target.at is not None, "both sides wait for ever"
        if target.at is None or (draft.at is not None and draft.at <= target.at):
            draft.step()
        else:
            target.step(draft)
    return target.steps, target.end


def _first_wrong(tokens: Sequence[bool]) -> int | None:
    return next((i for i, right in enumerate(tokens) if not right), None)


@dataclass
class _Target:
    """Verifies what is in its slot: for each position whether the token published there is the target's own."""

    num_tokens: int
    limit: int
    times: Times
    draft_length: int
    eos: int | None

    def __post_init__(self) -> None:
        self.length = 1  # committed
        self.slot: tuple[bool, ...] = ()
        self.tree: tuple[bool, ...] | None = None  # under verification
        self.contradicted, self.stale = -1, False
        self.steps: list[Step] = []
        self.at: float | None = 0.0  # when it goes on; None: it waits for news
        self.end = 0.0

    def step(self, draft: _Draft) -> None:
        assert self.at is not None
        if self.tree is not None:
            self._commit(self.tree)
            self.end, self.tree, self.stale = self.at, None, False
            if draft.at is None:
                draft.at = self.at
            return
        left = _first_wrong(self.slot[: self.length])
        usable = self.slot[self.length :] if left is None else ()
        if left is not None and left > self.contradicted:
            self.contradicted, self.stale = left, True
        room = self.limit - self.length - 1
        complete = bool(usable) and usable[-1] and len(self.slot) - 1 == self.eos
        if len(usable) >= min(self.draft_length, room) or complete or (self.stale and not usable):
            self.tree = usable[:room]
            self.at += self.times.target(1 + len(self.tree))
        else:
            self.at = None

    def _commit(self, tree: tuple[bool, ...]) -> None:
        left = _first_wrong(tree)
        accepted = len(tree) if left is None else left
        if left is not None:
            self.contradicted = self.length + left
        emitted = min(accepted + 1, self.num_tokens - self.length)
        self.steps.append(Step(len(tree), min(accepted, emitted), emitted))
        self.length += emitted


class _Draft:
    """Looks for verdicts, drafts a token, looks again, publishes."""

    def __init__(self, wrong: Wrong, target: _Target, max_lookahead: int):
        self.wrong, self.target, self.max_lookahead = wrong, target, max_lookahead
        self.tokens = [True]  # the output as this side sees it
        self.published = 0  # so many of them stand in the slot as they are here
        self.drafting = False
        self.at: float | None = 0.0

    def step(self) -> None:
        assert self.at is not None
        if self.drafting:
            self.tokens.append(not self.wrong(len(self.tokens)))
        self.drafting, known = False, self.target.length
        left = _first_wrong(self.tokens[:known])
        agreed = len(self.tokens) if left is None else left
        if agreed < known:
            self.tokens = self.tokens[:agreed] + [True] * (known - agreed)
            self.published = min(self.published, agreed)
        if len(self.tokens) > max(self.published, known):
            self.published, self.target.slot = len(self.tokens), tuple(self.tokens)
            if self.target.at is None:
                self.target.at = self.at
        ended = self.tokens[-1] and len(self.tokens) - 1 == self.target.eos
        if len(self.tokens) - known < self.max_lookahead and len(self.tokens) < self.target.limit - 1 and not ended:
            self.drafting = True
            self.at += self.target.times.draft
        else:
            self.at = None
