"""What a draft is worth on recorded greedy text, without running a method: replays and formulas.

Under greedy decoding a drafted token is kept exactly when it equals the target's. So one pass of the draft over the target's
text tells, for every position, whether its draft would be kept given that everything before it was; any schedule can then be
replayed on a virtual clock. Times are in units of one target forward over one row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Matches = Sequence[Sequence[bool]]  # text by text, position by position


def acceptance_by_position(texts: Matches, draft_length: int) -> list[float]:
    """Share of rounds that kept drafts 1, 2, ..., `draft_length` (of rounds whose text was long enough to tell)."""
    kept, asked = [0] * draft_length, [0] * draft_length
    for matches in texts:
        position = 0
        while position < len(matches):
            run = _run(matches, position, draft_length)
            for depth in range(min(draft_length, len(matches) - position)):
                asked[depth] += 1
                kept[depth] += depth < run
            position += run + 1
    return [k / a if a else 0.0 for k, a in zip(kept, asked, strict=True)]


def speculative_speedup(texts: Matches, draft_length: int, draft_cost: float, rows_cost: Callable[[int], float]) -> float:
    """Sequential drafting on recorded text: tokens over time, where a round costs its drafts and one target forward."""
    tokens, time = 0, 0.0
    for matches in texts:
        position = 0
        while position < len(matches):
            position += _run(matches, position, draft_length) + 1
            time += draft_length * draft_cost + rows_cost(draft_length + 1)
        tokens += len(matches)
    return tokens / time


def asynchronous_speedup(texts: Matches, max_lookahead: int, draft_cost: float, rows_cost: Callable[[int], float]) -> float:
    """AMUSD (McDanel 2024) on recorded text, on two devices of its own and with free communication.

    The draft never pauses. A verification takes all drafts that are ready (it waits for the first one, and takes at most
    `max_lookahead`); if it keeps them all and the draft's next token is the target's own next token too, the drafts made
    meanwhile stay good, else drafting starts afresh.
    """
    tokens, time = 0, 0.0
    for matches in texts:
        position, now, drafting_since = 0, 0.0, 0.0  # drafts of position, position + 1, ... come since drafting_since
        while position < len(matches):
            now = max(now, drafting_since + draft_cost)
            ready = min(int((now - drafting_since) / draft_cost + 1e-9), max_lookahead)
            run = _run(matches, position, ready)
            now += rows_cost(ready + 1)
            position += run + 1
            all_kept = run == ready and position <= len(matches) and matches[position - 1]
            # Good drafts: the tokens that are now in the text leave the queue. A draft not yet finished keeps its progress.
            drafting_since = drafting_since + (ready + 1) * draft_cost if all_kept else now
        tokens += len(matches)
        time += now
    return tokens / time


def formula_speedup(acceptance: float, draft_length: int, draft_cost: float) -> float:
    """(1 - a^(g+1)) / ((1 - a) (1 + g c)): independent acceptance, verification as dear as one row (Leviathan et al. 2023)."""
    emitted = draft_length + 1 if acceptance >= 1 else (1 - acceptance ** (draft_length + 1)) / (1 - acceptance)
    return emitted / (1 + draft_length * draft_cost)


def asynchronous_bound(draft_cost: float) -> float:
    """No asynchronous method is faster than its draft: 1 / c."""
    return 1 / draft_cost


def _run(matches: Sequence[bool], start: int, limit: int) -> int:
    run = 0
    while run < limit and start + run < len(matches) and matches[start + run]:
        run += 1
    return run
