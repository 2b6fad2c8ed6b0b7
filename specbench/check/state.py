"""Rollbacks leave no trace: the caches behind an output equal those of a fresh prefill of the same ids."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from specbench.check.bench import GREEDY, SAMPLED, Bench, fresh_session
from specbench.check.result import SKIP, Result
from specbench.engine.session import Session

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}  # of the largest entry; others: five hundredths


def caches(bench: Bench, seeds: int = 2) -> Result:
    """After many prompts, lengths and seeds: keys and values of target and draft equal those of one fresh forward."""
    compared, rollbacks, sessions = 0, 0, set()
    for law, num_seeds in ((GREEDY, 1), (SAMPLED, seeds)):
        method = bench.method(law)
        for seed in range(num_seeds):
            for prompt in range(len(bench.prompts)):
                for length in (7, 24):
                    request = bench.request(prompt, seed, max_new_tokens=length, eos_ids=())
                    outcome = bench.decode(law, request)
                    rollbacks += sum(r.num_discarded > 0 for r in outcome.rounds)
                    ids = [*request.prompt_ids, *outcome.output_ids]
                    last_round = outcome.rounds[-1].num_emitted if outcome.rounds else 0
                    # The last token is pending; what the draft holds behind the last verdict may have been rejected by it.
                    for role, session in method.sessions().items():
                        known = len(ids) - 1 if role == "target" else len(ids) - last_round
                        if not isinstance(session, Session) or not session.length:  # emptied, to be filled when it is used
                            continue
                        if role == "target" and session.length < known:
                            return Result.of(f"the target was fed {session.length} of {known} committed tokens", "")
                        error = cache_error(session, ids[: min(known, session.length)])
                        if error > TOLERANCE.get(session.model.dtype, 5e-2):
                            where = f"prompt {prompt}, length {length}, seed {seed}"
                            return Result.of(f"{role}: {where}: off by {error:.2g} of the largest entry", "")
                        compared += 1
                        sessions.add(role)
    if not compared:
        return Result(SKIP, "the method has no session of its own in this process")
    return Result.of(None, f"{compared} caches ({', '.join(sorted(sessions, reverse=True))}) after {rollbacks} rollbacks")


def cache_error(session: Session, ids: Sequence[int]) -> float:
    """Largest difference to a fresh session fed `ids`, over all layers' keys and values, in units of the largest entry."""
    fresh, length = fresh_session(session.model, ids)[0], len(ids)
    worst = 0.0
    for ours, theirs in zip(session.cache.layers, fresh.cache.layers, strict=True):
        for a, b in ((ours.keys, theirs.keys), (ours.values, theirs.values)):
            assert a is not None and b is not None
            difference = (a[:, :, :length] - b[:, :, :length]).abs().max() / b[:, :, :length].abs().max()
            worst = max(worst, float(difference))
    return worst
