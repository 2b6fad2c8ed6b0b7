"""An arm: a method at work on this machine's cores, asked one prompt at a time, answering with records.

`method` and `baseline` run on the same target weights, clock and stop rule; what differs is the method, and on a CPU the cores
and threads that suit it. A sample that fails is recorded as a failure without numbers, and the run goes on; a dead worker ends
it.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from specbench.engine.request import Request
from specbench.measure.records.events import Round, SampleRecord
from specbench.measure.sensors.clock import memory_peak_bytes, reset_memory_peak
from specbench.method import Method
from specbench.processes.placement import Placement, available_cores
from specbench.processes.worker import WorkerError


@dataclass
class Arm:
    """name: "method" or "baseline". placement: cores and threads while this arm is on the clock."""

    name: str
    method: Method
    device: str
    placement: Placement

    def run(
        self, request: Request, *, repeat: int, order: int, category: str | None, session: int = 0
    ) -> tuple[SampleRecord, list[Round]]:
        """Decode one request. Raises WorkerError (nothing can go on then) and KeyboardInterrupt; records other errors."""
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
            with self.placement.applied():
                outcome = self.method.decode(request)
        except WorkerError:
            raise
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {error} (at {where.name}, line {where.lineno})"
            return SampleRecord(**facts, output_ids=(), finish_reason="error", error=text), []
        return (
            SampleRecord(
                **facts,
                output_ids=tuple(outcome.output_ids),
                finish_reason=outcome.finish_reason,
                prefill_seconds=outcome.prefill_seconds,
                decode_seconds=outcome.decode_seconds,
                num_emitted=max(0, len(outcome.output_ids) - 1),
                num_rounds=len(outcome.rounds),
                memory_peak_bytes=memory_peak_bytes(self.device),
                concurrent_seconds=outcome.concurrent_seconds,
                started_at=outcome.started_at,
                spans=tuple(outcome.spans),
            ),
            outcome.rounds,
        )


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
    prompt is run once more at the start, unmeasured: first-use costs (allocator, kernels, lazy imports) belong to nobody.
    """
    settled = arm.method.placement
    candidates = [settled.threads] if settled else thread_candidates(arm.device, threads)
    cores = arm.placement.cores
    seconds, tokens = dict.fromkeys(candidates, 0.0), dict.fromkeys(candidates, 0)
    for index, request in enumerate([*requests[:1], *requests]):
        first = index % len(candidates)
        for count in [*candidates[first:], *candidates[:first]]:
            arm.placement = settled or Placement(cores, count)
            record, _ = arm.run(request, repeat=-1, order=-1, category=None)
            if record.error:
                raise RuntimeError(f"the warm-up of the {arm.name} arm failed: {record.error}")
            if index:
                seconds[count] += record.decode_seconds or 0.0
                tokens[count] += record.num_emitted or 0
    measured = {count: seconds[count] / tokens[count] if tokens[count] else 0.0 for count in candidates}
    best = min(candidates, key=lambda count: measured[count])
    arm.placement = settled or Placement(cores, best)
    return {str(count): value for count, value in measured.items()}
