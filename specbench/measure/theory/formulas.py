"""The papers' closed forms: every draft is accepted with probability alpha, whatever came before.

    sequential    Leviathan et al. 2023 (2211.17192, section 3): a round of gamma drafts emits
                  (1 - alpha^(gamma+1)) / (1 - alpha) tokens and takes gamma t_draft + t_verify.
    lockstep      PEARL (Liu et al. 2024, 2408.11850): gamma tokens are drafted while others are verified, no bonus token; a
                  step emits (1 - alpha^gamma) / ((1 - alpha) (1 - alpha^gamma + alpha)) tokens and takes
                  max(gamma t_draft, t_verify).
    free-running  AMUSD (McDanel 2024, 2410.17375): the draft never stops, so tokens cannot come faster than it drafts: the
                  speed-up is at most t_AR / t_draft. What rejections leave of that has no closed form and is played through.
    foreseeing    SSD (Kumar, Dao and May 2026, 2603.03251): rounds as in the sequential one; a verdict that was foreseen
                  costs nothing beside the verification, unless preparing took longer; one that was not, gamma t_draft.

Speed-ups are over autoregressive decoding: c = t_draft / t_AR, v = t_verify / t_AR (1: verifying is as cheap as one token).
"""

from __future__ import annotations

import random
from functools import cache

from specbench.measure.theory.played import Times, free_running

PLAYED_TOKENS = 4000  # a speed-up within about 2 % of any longer text's
SEQUENTIAL, LOCKSTEP, FREE_RUNNING, FORESEEING = "sequential", "lockstep", "free-running", "foreseeing"


def emitted_sequential(alpha: float, gamma: float) -> float:
    """Expected tokens per round. alpha in [0, 1], gamma >= 0."""
    return gamma + 1.0 if alpha >= 1 else (1 - alpha ** (gamma + 1)) / (1 - alpha)


def emitted_lockstep(alpha: float, gamma: float) -> float:
    """Expected tokens per lockstep of PEARL; gamma as alpha goes to 1."""
    if alpha >= 1:
        return gamma
    power = alpha**gamma
    return (1 - power) / ((1 - alpha) * (1 - power + alpha))


def speedup_sequential(alpha: float, gamma: float, c: float, v: float = 1.0) -> float:
    return emitted_sequential(alpha, gamma) / (gamma * c + v)


def speedup_lockstep(alpha: float, gamma: float, c: float, v: float = 1.0) -> float:
    return emitted_lockstep(alpha, gamma) / max(gamma * c, v)


def bound_free_running(c: float) -> float:
    """No asynchronous method is faster than its draft."""
    return 1 / c


@cache
def speedup_free_running(alpha: float, c: float, v: float, draft_length: int, max_lookahead: int) -> float:
    """AMUSD with its options (stale: plain), played over a long text whose positions are right with probability alpha."""
    draw = random.Random(0)
    wrong = [draw.random() >= alpha for _ in range(PLAYED_TOKENS + max_lookahead + 1)]
    tokens = PLAYED_TOKENS + 1
    _, end = free_running(wrong.__getitem__, tokens, tokens, Times(c, v), draft_length, max_lookahead)
    return PLAYED_TOKENS / end


def speedup_foreseeing(alpha: float, gamma: float, c: float, v: float, hits: float) -> float:
    """hits: share of the verdicts that were foreseen. Preparing takes one forward over the draft, then one for each token."""
    return emitted_sequential(alpha, gamma) / (hits * max(v, (gamma + 1) * c) + (1 - hits) * (v + gamma * c))


def closed_emitted(schedule: str, alpha: float, gamma: float) -> float | None:
    """Tokens per round by the formula of a schedule; None where there is none (free-running)."""
    if schedule == FREE_RUNNING:
        return None
    return (emitted_lockstep if schedule == LOCKSTEP else emitted_sequential)(alpha, gamma)


def closed_speedup(schedule: str, alpha: float, gamma: int, times: Times, ar: float) -> float:
    """Speed-up by the formula of a schedule, for a free-running draft its bound. ar: seconds of a token without drafts."""
    c = times.draft / ar
    if schedule == FREE_RUNNING:
        return bound_free_running(c)
    rows = gamma if schedule == LOCKSTEP else gamma + 1
    return (speedup_lockstep if schedule == LOCKSTEP else speedup_sequential)(alpha, gamma, c, times.target(rows) / ar)
