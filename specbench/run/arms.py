"""An arm: a method at work on this machine's cores, asked one prompt at a time, answering with records.

`method` and `baseline` run on the same target weights, clock and stop rule; what differs is the method, and on a CPU the cores
and threads that suit it. A sample that fails is recorded as a failure without numbers, and the run goes on; a dead worker ends
it.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from specbench.engine.request import Outcome, Request
from specbench.measure.metrics import IdentityError, RoundTable, check_identities
from specbench.measure.records.events import Round, SampleRecord
from specbench.measure.sensors.clock import making_seconds, memory_peak_bytes, reset_memory_peak
from specbench.method import Method
from specbench.processes.placement import Placement, available_cores
from specbench.processes.program import WorkerError
from specbench.run.hooks import RAISED, MethodError, Watchdog, name_of, told

CLOCK_SLACK_SECONDS = 0.01  # between two clocks, and an accelerator's own
TRIAL_SECONDS, MOST_TRIALS = 0.25, 20  # of decoding behind a choice of thread counts, and times that a prompt is run for it
LEAST_ON_CLOCK = 0.8  # of the time that decoding takes from outside: caches are laid out and prompts announced off the clock


@dataclass
class Arm:
    """name: "method" or "baseline". placement: cores and threads while this arm is on the clock. watchdog: over its hooks."""

    name: str
    method: Method
    device: str
    placement: Placement
    watchdog: Watchdog = field(default_factory=lambda: Watchdog(math.inf))
    claimed_seconds: float = 0.0  # by the outcomes of all requests
    wall_seconds: float = 0.0  # that they took from outside, with what is off their clock, but no program's making

    def run(
        self, request: Request, *, repeat: int, order: int, category: str | None, session: int = 0
    ) -> tuple[SampleRecord, list[Round]]:
        """Decode one request. Raises WorkerError, MethodError for a hook that hangs (nothing can go on then) and
        KeyboardInterrupt; records other errors."""
        facts: dict[str, Any] = {
            "sample_id": request.sample_id,
            "turn": request.turn,
            "repeat": repeat,
            "arm": self.name,
            "order": order,
            "category": category,
            "prompt_ids": request.prompt_ids,
            "threads": self.placement.threads,
            "session": session,
        }
        reset_memory_peak(self.device)
        try:
            with self.placement.applied(), self.watchdog.over(self.method):
                start, making = time.perf_counter(), making_seconds()
                outcome = self.method.decode(request)
                wall_seconds = time.perf_counter() - start
            self.wall_seconds += wall_seconds - (making_seconds() - making)
            self.claimed_seconds += outcome.prefill_seconds + outcome.decode_seconds
            record = record_of(outcome, memory_peak_bytes=memory_peak_bytes(self.device), **facts)
            wrong = contradiction(request, record, outcome.rounds)
            if wrong is None and outcome.prefill_seconds + outcome.decode_seconds > wall_seconds + CLOCK_SLACK_SECONDS:
                wrong = f"its clocks say more than the {wall_seconds:.3f} s that it took"
            if wrong is None:
                return record, outcome.rounds
            why = f"the outcome of decode of {name_of(self.method)} is wrong: {wrong}"
        except (WorkerError, MethodError):
            raise
        except RAISED as error:
            why = told(error, self.method)
        return SampleRecord(**facts, output_ids=(), finish_reason="error", error=why), []


def record_of(outcome: Outcome, **facts: Any) -> SampleRecord:
    """The record of a sample that was finished. facts: the fields that its outcome does not say."""
    return SampleRecord(
        **facts,
        output_ids=tuple(outcome.output_ids),
        finish_reason=outcome.finish_reason,
        prefill_seconds=outcome.prefill_seconds,
        decode_seconds=outcome.decode_seconds,
        num_emitted=max(0, len(outcome.output_ids) - 1),
        num_rounds=len(outcome.rounds),
        concurrent_seconds=outcome.concurrent_seconds,
        started_at=outcome.started_at,
        counted=outcome.counted,
        spans=tuple(outcome.spans),
    )


def clock_warnings(arms: Iterable[Arm]) -> list[str]:
    """Of arms whose clocks leave out what their decoding takes: a method that stops its clock looks fast."""
    return [
        f"{arm.name}: its clocks account for {arm.claimed_seconds / arm.wall_seconds:.0%} of the time that its decoding took"
        for arm in arms
        if arm.claimed_seconds < LEAST_ON_CLOCK * arm.wall_seconds
    ]


def contradiction(request: Request, record: SampleRecord, rounds: list[Round]) -> str | None:
    """In what an outcome contradicts its request or itself (which would end the run when it is summed up), or None."""
    ids, ends = record.output_ids, request.eos_ids
    if not ids or not all(type(token) is int and token >= 0 for token in ids):
        return "the output is no list of token ids"
    if len(ids) > request.max_new_tokens or any(token in ends for token in ids[:-1]):
        return f"the output goes on behind its end: {len(ids)} tokens of {request.max_new_tokens}, or an EOS inside"
    reason = "eos" if ids[-1] in ends else "length" if len(ids) == request.max_new_tokens else None
    if record.finish_reason != reason:
        return f"finish_reason is {record.finish_reason!r} where {reason!r} was due, after {len(ids)} tokens"
    try:
        check_identities([record], RoundTable.of({record.key: rounds}))
    except IdentityError as error:
        return str(error)
    return None


def thread_candidates(device: str, configured: int | None) -> list[int]:
    """Thread counts worth trying for one process: the configured one, else 1, half and all of the available cores."""
    if configured is not None:
        return [configured]
    cores = len(available_cores())
    return [1] if device != "cpu" else sorted({1, max(1, cores // 2), cores})


def warm_up(arm: Arm, requests: Sequence[Request], threads: int | None) -> dict[str, float]:
    """Run the warm-up prompts; on a CPU choose the thread count by speed. Returns seconds per decoded token by thread count.

    A method that shares cores with its workers has settled that itself. The counts take turns prompt by prompt, in an order
    that goes round: a machine whose speed drifts would otherwise favour the count that was tried at the better time. The first
    prompt is run once more at the start, unmeasured: first-use costs (allocator, kernels, lazy imports) belong to nobody. Where
    the prompts are over before a choice can rest on them they are run again, what the method kept of them forgotten.
    """
    settled = arm.method.placement
    candidates = [settled.threads] if settled else thread_candidates(arm.device, threads)
    cores = arm.placement.cores
    seconds, tokens = dict.fromkeys(candidates, 0.0), dict.fromkeys(candidates, 0)
    turns = itertools.count()

    def run(request: Request) -> dict[int, SampleRecord]:
        """With every count."""
        records, first = {}, next(turns) % len(candidates)
        for count in [*candidates[first:], *candidates[:first]]:
            arm.placement = settled or Placement(cores, count)
            records[count], _ = arm.run(request, repeat=-1, order=-1, category=None)
            if records[count].error:
                raise RuntimeError(f"the warm-up of the {arm.name} arm failed: {records[count].error}")
        return records

    run(requests[0])
    for trial in range(MOST_TRIALS if len(candidates) > 1 else 1):
        if trial:
            arm.method.reset()
        for request in requests:
            for count, record in run(request).items():
                seconds[count] += record.decode_seconds or 0.0
                tokens[count] += record.num_emitted or 0
        if min(seconds.values()) >= TRIAL_SECONDS:
            break
    measured = {count: seconds[count] / tokens[count] if tokens[count] else 0.0 for count in candidates}
    best = min(candidates, key=lambda count: measured[count])
    arm.placement = settled or Placement(cores, best)
    return {str(count): value for count, value in measured.items()}
