"""Many requests on one machine: continuous batching, and how long a draft pays as the load rises (SmartSpec, 2406.14066).

A step serves every running request with the same number of drafts: k draft forwards and one verification over the whole batch,
so it costs what the curves say of that batch. Requests join and leave between steps (continuous batching, Orca 2022); one that
joins costs its prompt first, and its draft's when it is first drafted for. The policy takes, before each step, the length with
most expected tokens per second, 0 included (goodput, `parts.stops.goodput`); what it expects is the batch's moving acceptance,
as it was seen and not as it is. Several replicas share one stream of requests, each with a batch and a policy of its own.
"""

from __future__ import annotations

import heapq
import math
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
MAX_TEXTS = 10_000  # that differ; a longer trace has them again


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


class Replica:
    """One machine that serves: a queue, a batch under way, and what the policy has seen there. now: when its next step begins.

    length: of every draft; None: the policy's choice of 0 to `longest`.
    """

    def __init__(self, costs: Costs, length: int | None, longest: int, max_batch: int, served: Served):
        self.costs, self.length, self.longest, self.max_batch, self.served = costs, length, longest, max_batch, served
        self.waiting: deque[tuple[float, Text]] = deque()
        self.running: list[Running] = []
        self.now, self.accepted, self.rejected, self.plain = 0.0, 0.0, 0.0, 0

    @property
    def load(self) -> int:
        return len(self.waiting) + len(self.running)

    def take(self, arrival: float, text: Text) -> None:
        if not self.load:
            self.now = max(self.now, arrival)
        self.waiting.append((arrival, text))

    def step(self) -> None:
        """Admit who waits, and one step of the batch."""
        while self.waiting and len(self.running) < self.max_batch:
            arrival, text = self.waiting.popleft()
            self.now += self.costs.prefill["target"].seconds(text.prompt_length, 0)
            self.running.append(Running(text, arrival))
        running, served, batch = self.running, self.served, len(self.running)
        context = round(sum(r.text.prompt_length + r.position for r in running) / batch)
        chosen = self._chosen(context, batch) if self.length is None else self.length
        for request in running if chosen else ():
            if not request.drafted:
                self.now += self.costs.prefill["draft"].seconds(request.text.prompt_length + request.position - 1, 0)
                request.drafted = True
        self.now += step_seconds(self.costs, chosen, context, batch)
        served.lengths[chosen] = served.lengths.get(chosen, 0) + 1
        served.batches.append(batch)
        accepted = rejected = 0
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
                served.latencies.append(self.now - request.arrival)
        kept = 0.5 ** ((accepted + rejected) / HALF_LIFE)
        self.accepted, self.rejected = kept * (self.accepted + accepted), kept * (self.rejected + rejected)
        self.running = [request for request in running if request.position < request.text.length]

    def _chosen(self, context: int, batch: int) -> int:
        chance = (self.accepted + 1) / (self.accepted + self.rejected + 2)  # of one verdict nothing follows (Laplace)
        each = [step_seconds(self.costs, k, context, batch) / batch for k in range(1 + self.longest)]
        chosen = best_length([chance], each)  # all of the batch are alike
        if not chosen and self.plain >= PROBE_EVERY and best_length([1.0], each):
            chosen = 1  # it would pay, were the drafts right
        self.plain = 0 if chosen else self.plain + 1
        return chosen


def serve(
    costs: Costs,
    texts: Sequence[Text],
    arrivals: Sequence[float],
    *,
    length: int | None,
    longest: int,
    max_batch: int,
    replicas: int = 1,
    seed: int = 0,
) -> Served:
    """Serve a trace on so many machines alike. length, longest: see `Replica`. Raises CostError far outside the curves.

    A request goes to the less loaded of two replicas drawn by `seed` (two choices, Mitzenmacher 2001), as the load is when
    the steps under way end.
    """
    served = Served(POLICY if length is None else f"k = {length}")
    fleet = [Replica(costs, length, longest, max_batch, served) for _ in range(replicas)]
    draw, due = random.Random(seed), list[tuple[float, int]]()  # busy replicas by when their next step begins
    requests = sorted(zip(arrivals, texts, strict=True), key=lambda item: item[0])

    def run_until(time: float) -> None:
        while due and due[0][0] < time:  # who arrives at that very moment is admitted first
            number = due[0][1]
            fleet[number].step()
            if fleet[number].load:
                heapq.heapreplace(due, (fleet[number].now, number))
            else:
                heapq.heappop(due)

    for arrival, text in requests:
        run_until(arrival)
        number = min(draw.randrange(replicas), draw.randrange(replicas), key=lambda n: fleet[n].load)
        if not fleet[number].load:
            heapq.heappush(due, (max(fleet[number].now, arrival), number))
        fleet[number].take(arrival, text)
    run_until(math.inf)
    served.seconds = max(replica.now for replica in fleet) - (requests[0][0] if requests else 0.0)
    return served


def over_traces(
    costs: Costs,
    texts: Sequence[Text],
    traces: Mapping[float, Sequence[float]],
    lengths: Sequence[int],
    max_batch: int,
    replicas: int = 1,
) -> dict[float, list[Served]]:
    """By request rate: the policy, then every fixed length, on the same arrivals."""
    options = {"longest": max(lengths), "max_batch": max_batch, "replicas": replicas}
    return {
        rate: [serve(costs, texts, arrivals, length=length, **options) for length in (None, *lengths)]
        for rate, arrivals in traces.items()
    }
