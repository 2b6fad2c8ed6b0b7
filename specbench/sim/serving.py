"""Many requests on one machine: continuous batching, and how long a draft pays as the load rises (SmartSpec, 2406.14066).

A step serves every running request with the same number of drafts: k draft forwards and one verification over the whole batch,
so it costs what the curves say of that batch. Requests join and leave between steps (continuous batching, Orca 2022); one that
joins costs its prompt first, and its draft's when it is first drafted for. The policy takes, before each step, the length with
most expected tokens per second, 0 included (goodput, `parts.stops.goodput`); what it expects is the batch's moving acceptance,
as it was seen and not as it is.
"""

from __future__ import annotations

import random
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from specbench.config.options import ConfigError
from specbench.parts.stops.goodput import best_length
from specbench.sim.acceptance import Text
from specbench.sim.costs import ALONE, TURNS, Costs

HALF_LIFE = 512.0  # judged drafts of the whole batch after which a verdict counts half
PROBE_EVERY = 16  # plain steps, which tell nothing, after which one token is drafted where right drafts would pay
POLICY = "goodput"


def poisson(rate: float, number: int, seed: int) -> list[float]:
    """Arrival times of a Poisson process, in seconds: the same draws for every rate, stretched."""
    draw, at, times = random.Random(seed), 0.0, []
    for _ in range(number):
        at += draw.expovariate(1.0) / rate
        times.append(at)
    return times


def recorded_arrivals(path: Path) -> list[float]:
    """Arrival times in seconds, one a line, in order. Raises ConfigError for a file that holds anything else."""
    try:
        times = [float(line) for line in path.read_text(encoding="utf-8").split()]
    except (OSError, ValueError) as error:
        raise ConfigError("arrivals", str(path), f"give a file of seconds, one a line: {error}") from error
    if not times or times != sorted(times) or times[0] < 0 or not times[-1] < float("inf"):
        raise ConfigError("arrivals", str(path), "holds no times that rise from 0")
    return times


@dataclass
class Running:
    """A request under way. position: output tokens so far. drafted: the draft has been fed its prompt."""

    text: Text
    arrival: float
    position: int = 1  # the prefill's token is there
    drafted: bool = False


@dataclass
class Served:
    """What a trace of requests came to. seconds of latency: from arrival to the last token."""

    policy: str
    latencies: list[float] = field(default_factory=list)
    num_tokens: int = 0
    seconds: float = 0.0
    lengths: dict[int, int] = field(default_factory=dict)  # steps by draft length
    batches: list[int] = field(default_factory=list)

    @property
    def mean_latency_seconds(self) -> float:
        return statistics.fmean(self.latencies)

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / self.seconds

    @property
    def mean_length(self) -> float:
        steps = sum(self.lengths.values())
        return sum(length * number for length, number in self.lengths.items()) / steps if steps else 0.0

    @property
    def mean_batch(self) -> float:
        return statistics.fmean(self.batches) if self.batches else 0.0


def step_seconds(costs: Costs, length: int, context: int, batch: int) -> float:
    """One step of the batch with so many drafts each; without any no draft is asked, and none is in the way."""
    if not length:
        return costs.curve("target", ALONE).seconds(1, context, batch)
    draft, target = costs.curve("draft", TURNS), costs.curve("target", TURNS)
    return length * draft.seconds(1, context, batch) + target.seconds(1 + length, context, batch)


def serve(
    costs: Costs, texts: Sequence[Text], arrivals: Sequence[float], *, length: int | None, longest: int, max_batch: int
) -> Served:
    """Serve a trace. length: of every draft; None: the policy's choice of 0 to `longest`. Raises CostError far outside the
    curves.
    """
    waiting = deque(sorted(zip(arrivals, texts, strict=True), key=lambda item: item[0]))
    running: list[Running] = []
    served = Served(POLICY if length is None else f"k = {length}")
    now, accepted, rejected, plain = 0.0, 0.0, 0.0, 0
    first = waiting[0][0] if waiting else 0.0
    while waiting or running:
        if not running:
            now = max(now, waiting[0][0])
        while waiting and waiting[0][0] <= now and len(running) < max_batch:
            arrival, text = waiting.popleft()
            now += costs.prefill["target"].seconds(text.prompt_length, 0)
            running.append(Running(text, arrival))
        batch = len(running)
        context = round(statistics.fmean(r.text.prompt_length + r.position for r in running))
        if length is None:
            chance = (accepted + 1) / (accepted + rejected + 2)  # of one verdict nothing follows (Laplace)
            seconds = [step_seconds(costs, k, context, batch) for k in range(1 + longest)]
            chosen = best_length([chance] * batch, seconds)
            if not chosen and plain >= PROBE_EVERY and best_length([1.0] * batch, seconds):
                chosen = 1  # it would pay, were the drafts right
            plain = 0 if chosen else plain + 1
        else:
            chosen = length
        for request in running if chosen else ():
            if not request.drafted:
                now += costs.prefill["draft"].seconds(request.text.prompt_length + request.position - 1, 0)
                request.drafted = True
        now += step_seconds(costs, chosen, context, batch)
        served.lengths[chosen] = served.lengths.get(chosen, 0) + 1
        served.batches.append(batch)
        before = accepted + rejected
        for request in running:
            text, run = request.text, 0
            while run < chosen and request.position + run < text.length - 1 and text.right[request.position + run]:
                run += 1
            accepted += run
            rejected += run < min(chosen, text.length - 1 - request.position)
            emitted = min(run + 1, text.length - request.position)
            request.position += emitted
            served.num_tokens += emitted
            if request.position >= text.length:
                served.latencies.append(now - request.arrival)
        kept = 0.5 ** ((accepted + rejected - before) / HALF_LIFE)
        accepted, rejected = kept * accepted, kept * rejected
        running = [request for request in running if request.position < request.text.length]
    served.seconds = now - first
    return served


def over_traces(
    costs: Costs, texts: Sequence[Text], traces: Mapping[float, Sequence[float]], lengths: Sequence[int], max_batch: int
) -> dict[float, list[Served]]:
    """By request rate: the policy, then every fixed length, on the same arrivals."""
    found = {}
    for rate, arrivals in traces.items():
        longest = max(lengths)
        found[rate] = [
            serve(costs, texts, arrivals, length=length, longest=longest, max_batch=max_batch) for length in (None, *lengths)
        ]
    return found
