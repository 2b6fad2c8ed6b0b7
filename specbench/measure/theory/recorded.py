"""What a draft is worth on recorded greedy text, without running a method.

Under greedy decoding a drafted token is kept exactly when it equals the target's. So one pass of the draft over the target's
text tells, for every position, whether its draft would be kept given that everything before it was; any schedule can then be
replayed on a virtual clock. Times are in units of one target forward over one row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from specbench.measure.theory.played import Step, Wrong, accepted_run, sequential

Matches = Sequence[Sequence[bool]]  # text by text, position by position


def _wrong(matches: Sequence[bool]) -> Wrong:
    """Positions count from 1, the token of the prefill being 0; nothing is right behind the text's end."""
    return lambda position: position > len(matches) or not matches[position - 1]


def rounds_of(matches: Sequence[bool], draft_length: int) -> list[Step]:
    """Sequential drafting of always `draft_length` tokens, whatever the text leaves room for."""
    num_tokens = len(matches) + 1
    return sequential(_wrong(matches), num_tokens, num_tokens + draft_length + 1, draft_length)


def acceptance_by_position(texts: Matches, draft_length: int) -> list[float]:
    """Share of rounds that kept drafts 1, 2, ..., `draft_length` (of rounds whose text was long enough to tell)."""
    kept, asked = [0] * draft_length, [0] * draft_length
    for matches in texts:
        left = len(matches)
        for step in rounds_of(matches, draft_length):
            for depth in range(min(draft_length, left)):
                asked[depth] += 1
                kept[depth] += depth < step.accepted
            left -= step.emitted
    return [k / a if a else 0.0 for k, a in zip(kept, asked, strict=True)]


def speculative_speedup(texts: Matches, draft_length: int, draft_cost: float, rows_cost: Callable[[int], float]) -> float:
    """Sequential drafting on recorded text: tokens over time, where a round costs its drafts and one target forward."""
    rounds = sum(len(rounds_of(matches, draft_length)) for matches in texts)
    return sum(map(len, texts)) / (rounds * (draft_length * draft_cost + rows_cost(draft_length + 1)))


def asynchronous_speedup(texts: Matches, max_lookahead: int, draft_cost: float, rows_cost: Callable[[int], float]) -> float:
    """AMUSD (McDanel 2024) on recorded text, on two devices of its own and with free communication.

    The draft never pauses. A verification takes all drafts that are ready (it waits for the first one, and takes at most
    `max_lookahead`); if it keeps them all and the draft's next token is the target's own next token too, the drafts made
    meanwhile stay good, else drafting starts afresh.
    """
    tokens, time = 0, 0.0
    for matches in texts:
        wrong = _wrong(matches)
        position, now, drafting_since = 0, 0.0, 0.0  # drafts of position, position + 1, ... come since drafting_since
        while position < len(matches):
            now = max(now, drafting_since + draft_cost)
            ready = min(int((now - drafting_since) / draft_cost + 1e-9), max_lookahead)
            run = accepted_run(wrong, position + 1, ready)
            now += rows_cost(ready + 1)
            position += run + 1
            all_kept = run == ready and position <= len(matches) and matches[position - 1]
            # Good drafts: the tokens that are now in the text leave the queue. A draft not yet finished keeps its progress.
            drafting_since = drafting_since + (ready + 1) * draft_cost if all_kept else now
        tokens += len(matches)
        time += now
    return tokens / time
