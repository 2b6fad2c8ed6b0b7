"""What a schedule does around its forwards: messages, books, choices, by running its real step functions on the real pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from specbench.config.specs import PairSpec
from specbench.engine.request import Outcome, Request
from specbench.engine.runtime import Runtime
from specbench.engine.sampling import SamplingLaw
from specbench.method import Method
from specbench.pair.load import draft_loader
from specbench.pair.stages import stage_loader
from specbench.processes.placement import Placement, available_cores
from specbench.sim.costs import ALONE, TURNS

PROMPT, TOKENS = 64, 64
SAMPLES, WARM_UP = 4, 1


def key_of(method: Method) -> str:
    """By what it is told apart: the schedule, and where the draft is."""
    return f"{method.schedule.name}, draft {method.needs.draft}"


def around_forwards(
    method: Method, pair: PairSpec, models: Mapping[str, Any], threads: Mapping[str, int], timeout_seconds: float
) -> dict[str, float]:
    """By role, the mean seconds that a forward has around it, over texts of no data.

    models, threads: by role, and by mode. A draft in the target's process has none of its own: the books do not tell its
    forwards from what is around them.
    """
    kind, vocab_size = method.needs.draft, models["target"].vocab_size
    runtime = Runtime(
        *(pair, models["target"], models["draft"] if kind == "local" else None, SamplingLaw(), TOKENS, frozenset()),
        *(timeout_seconds, True, draft_loader(pair), stage_loader(pair)),
    )
    try:
        method.open(runtime)
        place = method.placement or Placement(available_cores(), threads[TURNS if kind == "local" else ALONE])
        outcomes = []
        for number in range(WARM_UP + SAMPLES):
            prompt = tuple((53 * i + 17 * number + 5) % vocab_size for i in range(PROMPT))
            with place.applied():
                outcomes.append(method.decode(Request("around", number, prompt, TOKENS, frozenset(), 0)))
    finally:
        method.close()
    return seconds_around(outcomes[WARM_UP:])


def seconds_around(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """By role, from rounds and (of a draft's process) spans: the time that was neither computed nor waited, per forward."""
    rounds = [one for outcome in outcomes for one in outcome.rounds]
    booked = sum(one.draft_seconds + one.verify_seconds + one.wait_seconds + one.learn_seconds for one in rounds)
    found = {"target": (sum(outcome.decode_seconds for outcome in outcomes) - booked) / len(rounds)}
    spans = [outcome.spans for outcome in outcomes if outcome.spans]
    forwards = sum("draft" in what for some in spans for *_, what in some)
    if forwards:
        covered = sum(some[-1][1] - some[0][0] - sum(end - start for start, end, _ in some) for some in spans)
        found["draft"] = covered / forwards
    return {role: max(0.0, seconds) for role, seconds in found.items()}
