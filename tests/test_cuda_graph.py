"""CUDA graphs of whole chains and verdicts, on an accelerator: eager's ids, one wait a round, answers that stand.

In float32, and the ids of a tiny model with logits units apart: what the two ways add up in different orders moves none.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from test_at_once import KEY, LAWS, decoded, models, told
from test_at_once_workers import SCHEDULES, played

from specbench.engine.backends import captures, programs
from specbench.engine.backends.fixed import Capture, FixedSession
from specbench.engine.model import Model
from specbench.engine.target import open_session
from specbench.engine.tree import DraftTree
from specbench.methods.chains.speculative import Speculative

pytestmark = pytest.mark.gpu

DEVICE = "cuda:0"


def on_device(capture: str | None, architecture: str = "llama") -> tuple[Model, Model]:
    made = models(architecture, capture)
    for model in made:
        model.module.to(DEVICE)
    return made


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma3"])
def test_graphs_give_the_rounds_of_eager(architecture: str, law: str) -> None:
    said = [
        told(decoded(Speculative(draft_length=4), kind, LAWS[law], architecture, device=DEVICE)) for kind in (None, "graph")
    ]
    assert said[0] == said[1]


def waits_by_round(kind: str, law: str) -> list[int]:
    """Operations that wait for the device, as torch counts them, in each round of a sample whose programs are there."""
    around = tiny.runtime(*on_device(kind), law=LAWS[law], max_new_tokens=30)
    method, counts = tiny.opened(Speculative(draft_length=4), around), [0]
    for _ in range(2):
        method.decode(tiny.request(around, tiny.prompt(6)))
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")

        def count() -> None:
            counts.append(sum("synchroniz" in str(one.message) for one in found))

        around.alive = count
        torch.cuda.set_sync_debug_mode("warn")
        try:
            method.decode(tiny.request(around, tiny.prompt(6)))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return [after - before for before, after in pairwise(counts[1:])]


@pytest.mark.parametrize("law", LAWS)
def test_a_round_waits_once(law: str) -> None:
    assert set(waits_by_round("graph", law)) == {1}


def test_by_token_a_round_waits_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: graphs of single forwards."""
    monkeypatch.setitem(captures.CAPTURES, "single", Capture(captures.Graph))
    assert max(waits_by_round("single", "greedy")) >= 5


def test_what_was_answered_stands_and_a_changed_buffer_is_read() -> None:
    target, draft = on_device("graph")
    session = open_session(draft)
    assert isinstance(session, FixedSession)
    chains = []
    for _ in range(3):
        session.start(100)
        session.feed(tiny.prompt(9))
        chains.append(session.chain([3], 4, LAWS["sampled"], 5, KEY))
        session.rollback(9)
        chains.append(session.chain([4], 4, LAWS["sampled"], 9, KEY))
    assert all(isinstance(program.made, captures.Graph) for program in session._programs.values())
    assert list(chains[0] or ()) == list(chains[2] or ()) == list(chains[4] or ())
    assert list(chains[1] or ()) == list(chains[3] or ()) == list(chains[5] or ())

    judge = open_session(target)
    assert isinstance(judge, FixedSession)
    kept: list[Any] = []
    for _ in range(2):
        judge.start(600)  # other buffers than the draft's, and larger ones
        judge.pending = int(judge.prefill(tiny.prompt(9)).logits.argmax())
        for drafts in ([1, 2], [5, 6]):
            evidence = judge.forward_and_choose(DraftTree(drafts), LAWS["greedy"], 1, KEY)
            assert evidence.own is not None and evidence.own.tokens == evidence.logits.argmax(-1).tolist()
            kept.append((evidence.logits, evidence.logits.clone()))
            judge.rollback(9)
    assert all(torch.equal(one, other) for one, other in kept)
    assert torch.equal(kept[1][0], kept[3][0]) or torch.allclose(kept[1][0], kept[3][0], atol=1e-4)


def record_a_read() -> None:
    """Record a step that reads: what `test_recording_refuses_a_step_that_reads` runs in a process of its own."""

    def reads(scores: torch.Tensor) -> torch.Tensor:
        best = scores.argmax(-1)
        return best + 0 * int(best[0])

    _, draft = on_device("graph")
    session = open_session(draft)
    assert isinstance(session, FixedSession)
    programs.chosen = reads
    for _ in range(2):
        session.start(100)
        session.feed(tiny.prompt(9))
        session.chain([3], 2, LAWS["greedy"], 5, KEY)
    print("recorded")


def test_recording_refuses_a_step_that_reads() -> None:
    """The twin: a host read in a step is no graph. What a broken recording leaves behind nobody else shall meet."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_cuda_graph as t; t.record_a_read()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and "recorded" not in done.stdout and "capturing" in done.stderr, done.stderr


# ------------------------------------------------------------------------------------------------------ drafts in workers
@pytest.mark.parametrize("law", ["greedy", "sampled"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_drafts_in_workers_give_the_rounds_of_eager(schedule: str, law: str) -> None:
    """Both sides in this process: blocks, answers and tokens of the draft are graphs."""
    eager, graph = (played(schedule, kind, law, device=DEVICE) for kind in (None, "graph"))
    assert eager.rows == graph.rows
    made = graph.draft.session._programs.values()
    assert any(isinstance(program.made, captures.Graph) for program in made)
    if schedule != "free-running":
        assert {waits for waits, _ in graph.drafting} == {1} and max(tokens for _, tokens in graph.drafting) > 1


# --------------------------------------------------------------------------------------------------- memory and lifetimes
def warmed(capacity: int, lengths: tuple[int, ...] = (2, 3)) -> FixedSession:
    """A draft's session with graphs of chains of these lengths."""
    session = open_session(on_device("graph")[1])
    assert isinstance(session, FixedSession)
    for _ in range(2):
        session.start(capacity)
        session.feed(tiny.prompt(9))
        for length in lengths:
            list(session.chain([3], length, LAWS["greedy"], 5, KEY) or ())
            session.rollback(9)
    return session


def test_what_recordings_hold_is_told_and_later_ones_take_less() -> None:
    first, second = warmed(100), warmed(100)
    for session in (first, second):
        held = session.program_bytes
        assert held["programs"] > 0 and held["recordings"] >= 0
    assert second.program_bytes["recordings"] <= first.program_bytes["recordings"], "one pool for all of a device"


def test_graphs_outlive_others_of_their_stream() -> None:
    """A session's graphs are dropped when its buffers grow, and when it is gone; those of others still say the same."""
    session = warmed(100)
    said = list(session.chain([3], 3, LAWS["greedy"], 5, KEY) or ())
    session.rollback(9)
    for capacity in (300, 600, 900):
        grown = warmed(capacity)
        grown.start(capacity + 300)  # other buffers: its graphs are dropped and made anew
        del grown
        gc.collect()
        torch.cuda.empty_cache()
        torch.full((2**26,), torch.nan, device=DEVICE)  # over what was given back
        assert list(session.chain([3], 3, LAWS["greedy"], 5, KEY) or ()) == said
        session.rollback(9)


def test_the_collector_rests_while_a_graph_is_recorded() -> None:
    """A session that waits for the collector, with graphs, while others are recorded."""
    gc.collect()
    gc.disable()
    try:
        warmed(100)  # nobody holds it, and it holds itself
        before = gc.get_threshold()
        gc.set_threshold(1, 1, 1)
        gc.enable()
        try:
            list(warmed(300).chain([3], 3, LAWS["greedy"], 5, KEY) or ())
        finally:
            gc.set_threshold(*before)
    finally:
        gc.enable()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="two devices")
def test_graphs_on_two_devices() -> None:
    """The draft's are recorded on its own device, whichever is the current one."""
    made = models("llama", "graph")
    for model, device in zip(made, ("cuda:0", "cuda:1"), strict=True):
        model.module.to(device)
    around = tiny.runtime(*made, max_new_tokens=22)
    method = tiny.opened(Speculative(draft_length=4), around)
    said = [method.decode(tiny.request(around, tiny.prompt(5), "0")).output_ids for _ in range(3)]
    expected = decoded(Speculative(draft_length=4), None, LAWS["greedy"], device=DEVICE)[0].output_ids
    assert said == [expected] * 3
