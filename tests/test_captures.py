"""How a CUDA graph is recorded, with a stand-in for the device that notes what is asked of it, in order."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch

from specbench.engine.backends import captures
from specbench.engine.backends.fixed import FixedSession, refusal, unrecordable
from specbench.engine.model import Model
from specbench.engine.sampling import SamplingLaw, host_numbers
from specbench.engine.target import held_bytes, open_session
from specbench.measure.sensors.clock import made_for
from specbench.processes.program import _done


class Device:
    """What `captures.Graph` asks of torch.cuda. reserves: bytes of each recording, in order."""

    def __init__(self, patch: pytest.MonkeyPatch, reserves: list[int]):
        self.told: list[Any] = []
        self.reserved, self.reserves, self.current, self.handles = 0, reserves, "main", 0
        cuda = SimpleNamespace(
            current_device=lambda: 1,
            current_stream=lambda: SimpleNamespace(wait_stream=lambda other: self.told.append(("main waits", other.name))),
            Stream=lambda device: SimpleNamespace(
                name=f"stream of {device}", wait_stream=lambda other: self.told.append("side waits")
            ),
            stream=self.on,
            graph_pool_handle=self.handle,
            CUDAGraph=lambda: SimpleNamespace(replay=lambda: self.told.append("replay")),
            graph=self.recording,
            synchronize=lambda: None,
            empty_cache=lambda: None,
            memory_reserved=lambda: self.reserved,
        )
        patch.setattr(captures, "torch", SimpleNamespace(cuda=cuda, zeros=lambda *a, **b: torch.zeros(1), _C=self))
        captures._place.cache_clear()

    def handle(self) -> str:
        self.handles += 1
        return f"pool {self.handles}"

    def _cuda_clearCublasWorkspaces(self) -> None:
        self.told.append("workspaces cleared")

    @contextlib.contextmanager
    def on(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream.name
        yield
        self.current = before

    @contextlib.contextmanager
    def recording(self, graph: Any, pool: Any, stream: Any) -> Iterator[None]:
        self.told.append(("recording", pool, stream.name, "collector on" if gc.isenabled() else "collector off"))
        yield
        self.reserved += self.reserves.pop(0)
        self.told.append("recorded")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    yield Device(monkeypatch, [512, 100, 0, 7])
    captures._place.cache_clear()


def test_graphs_of_a_device_share_a_stream_a_pool_and_nothing_disturbs_them(device: Device) -> None:
    ran: list[str] = []
    graphs = [captures.Graph(lambda: ran.append(device.current)) for _ in range(3)]
    assert [graph.reserved_bytes for graph in graphs] == [100, 0, 7], "the anchor's are nobody's"
    recordings = [one for one in device.told if one[0] == "recording"]
    assert recordings == [("recording", "pool 1", "stream of 1", "collector off")] * 4 and device.handles == 1
    assert ran == ["stream of 1", "stream of 1", "main"] * 3, "two runs beforehand, where it will be recorded"
    for place, one in enumerate(device.told):
        if one[0] == "recording":
            assert device.told[place - 1] == "workspaces cleared"
        if one == "recorded":
            assert device.told[place + 1] == "workspaces cleared"
    assert gc.isenabled()
    graphs[0]()
    assert device.told[-1] == "replay"


def test_the_collector_goes_on_behind_a_recording_that_fails(device: Device) -> None:
    captures._place(1)

    def broken() -> None:
        if device.told[-1][0] == "recording":
            raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="capturing"):
        captures.Graph(broken)
    assert gc.isenabled()
    gc.disable()
    try:
        captures.Graph(lambda: None)
        assert not gc.isenabled(), "it was off before"
    finally:
        gc.enable()


# ------------------------------------------------------------------------------------------------------------ what they hold
@pytest.mark.parametrize("law", [SamplingLaw(), SamplingLaw(0.7)])
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_bytes_of_buffers(law: SamplingLaw, architecture: str) -> None:
    model = tiny.model(architecture)
    session = open_session(replace(model, fixed="as_written"))
    assert isinstance(session, FixedSession) and held_bytes(session, "draft") == {"draft_kv": 0, "draft_programs": 0}
    for _ in range(2):
        session.start(100)
        session.pending = int(session.prefill(tiny.prompt(5)).logits.argmax())
        session.feed([1, 2, 3])
        session.chain([4], 2, law, 1, 0)
    slots = 256 + 64  # of the cache, in steps of 256, and those of programs in the making
    kinds = 1 if architecture == "llama" else 2
    rows = 3 * (8 + 8 + 8) + kinds * 3 * slots * 4
    chain = 8 + 8 + 8 + slots * 8 + (0 if law.greedy else 2 * model.vocab_size * 4)
    held = held_bytes(session, "draft")
    assert held == {"draft_kv": session.nbytes, "draft_programs": rows + chain}
    session.start(400)  # other buffers
    wider = rows + chain + 256 * (8 + kinds * 3 * 4)
    assert held_bytes(session, "draft")["draft_programs"] == wider


def test_recordings_are_told_where_something_was_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    class Recorded:
        reserved_bytes = 1000

        def __init__(self, step: Any):
            self.step = step

        def __call__(self) -> Any:
            return self.step()

    monkeypatch.setitem(captures.CAPTURES, "recorded", replace(captures.CAPTURES["graph"], make=Recorded))
    session = open_session(replace(tiny.model(), fixed="recorded"))
    for _ in range(2):
        session.start(100)
        session.feed(tiny.prompt(5))
        session.feed([1])
        session.feed([1, 2])
    assert held_bytes(session, "target")["target_recordings"] == 2000
    assert held_bytes(open_session(tiny.model()), "target") == {"target_kv": 0}


# ----------------------------------------------------------------------------------------------------- who can be recorded
def meta(architecture: str, **more: Any) -> Model:
    with torch.device("meta"):
        config = tiny.config(architecture)
        for key, value in more.items():
            setattr(config, key, value)
        from transformers import AutoModelForCausalLM

        return Model.wrap(AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_nothing_speaks_against_these(architecture: str) -> None:
    assert unrecordable(meta(architecture)) is None


def test_a_forward_that_reads_its_positions_is_refused() -> None:
    """Dynamic rotary frequencies follow from where each row stands, which the host looks at."""
    scaled = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    dynamic = meta("llama", rope_parameters=scaled)
    assert refusal(dynamic) is None and "asks the device for numbers" in str(unrecordable(dynamic))


def test_numbers_for_a_cpu_are_not_page_locked() -> None:
    numbers = host_numbers([3, -(2**62)], torch.device("cpu"))
    assert numbers.tolist() == [3, -(2**62)] and numbers.dtype == torch.int64 and not numbers.is_pinned()


def test_numbers_for_a_device_are_page_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(torch, "tensor", lambda *values, **more: asked.append(more["pin_memory"]))
    host_numbers([1], torch.device("cuda:1"))
    host_numbers([1], torch.device("cpu"))
    assert asked == [True, False]


def test_a_worker_says_how_long_programs_were_made() -> None:
    def prepare(order: Any) -> None:
        made_for(2.5)

    program: Any = SimpleNamespace(prepare=prepare, run=lambda: None)
    assert _done("prepare", object(), None, program) == ("prepared", 2.5)
    program.prepare = lambda order: None
    assert _done("prepare", object(), None, program) == ("prepared", 0.0)
