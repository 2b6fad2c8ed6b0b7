"""Programs that misbehave on request, in a module that a spawned child can import; and processes for the tests to kill.

What a drafter or a target does is said by the request's sample_id: "slow draft", "slow target", "draft: exit", ...
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, cast

from mailbox_peers import begin_message

from specbench.config.specs import ModelSpec, PairSpec
from specbench.engine.request import Request
from specbench.engine.runtime import Runtime
from specbench.engine.sampling import SamplingLaw, keyed_gumbel, noise_key
from specbench.engine.tree import DraftTree
from specbench.methods.overlap.amusd import Amusd
from specbench.pair.load import draft_loader, load_model
from specbench.parts.contracts import Setting
from specbench.parts.schedules.free_running.draft import DraftReport, DraftSide
from specbench.parts.schedules.free_running.schedule import FreeRunning
from specbench.processes.placement import Placement
from specbench.processes.program import Program
from specbench.processes.steps import Progress
from specbench.processes.worker import Worker

SLOW_SECONDS = 0.004


def noise_of(*sample: Any) -> tuple[str, str]:
    """The key of a seed, sample and turn, and every bit of a sum over some of its noise."""
    key = noise_key(*sample)
    return str(key), keyed_gumbel(key, [4, 5], 64).double().sum().item().hex()


def say_noise(*sample: Any) -> None:
    print(*noise_of(*sample), hash(sample[1]), flush=True)


class ScriptedDrafter(DraftSide):
    """Misbehaves at its third forward."""

    def run(self) -> DraftReport:
        self.forwards_made = 0
        return super().run()

    def _draft(self) -> Progress:
        self.forwards_made += 1
        what = self.order.request.sample_id
        if what == "slow draft":
            time.sleep(SLOW_SECONDS)
        elif what.startswith("draft: ") and self.forwards_made == 3:
            misbehave(what.removeprefix("draft: "))
        return super()._draft()


def misbehave(how: str) -> None:
    if how == "exit":
        os._exit(7)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "memory":
        raise MemoryError("could not allocate 7 TiB")
    if how == "raise":
        raise RuntimeError("the draft stumbled over token 3")
    if how == "hang":
        time.sleep(3600)
    if how == "stop within a message":
        begin_message(slots[0])
        time.sleep(3600)
    raise AssertionError(how)


slots: list[Any] = []


class MidwayDrafter(ScriptedDrafter):
    """Knows its own slot, to be killed in the middle of a message."""

    def run(self) -> DraftReport:
        slots[:] = [self.drafts]
        return super().run()


class Scripted(FreeRunning):
    """AMUSD's schedule around a draft that misbehaves."""

    draft: type[DraftSide] = MidwayDrafter

    def make_draft_side(self, setting: Setting) -> DraftSide:
        return self.draft(self.mailbox, setting.runtime.law, self.max_lookahead, setting.runtime.trace)


class ScriptedAmusd(Amusd):
    """Amusd with a scripted draft and a target that is slow, fails or is interrupted on request."""

    schedule: FreeRunning
    scripted: type[Scripted] = Scripted

    def __init__(self, **options: Any):
        super().__init__(**options)
        made = self.schedule
        self.schedule = self.scripted(made.waits_for, made.max_lookahead, made.stale, made.draft_cores, made.stop)

    @property
    def worker(self) -> Worker:
        assert self.schedule.worker is not None, "open first"
        return self.schedule.worker

    def open(self, runtime: Runtime) -> None:
        super().open(runtime)
        forward, verifier = self.target.forward, self.schedule.verifier

        def scripted(tree: DraftTree) -> Any:
            what = verifier.order.request.sample_id
            if what == "slow target":
                time.sleep(SLOW_SECONDS)
            if verifier.books.position > 3:
                if what == "target: fails":
                    raise RuntimeError("the target stumbled")
                if what == "target: interrupted":
                    raise KeyboardInterrupt
            return forward(tree)

        self.target.forward = scripted  # type: ignore[method-assign]


class FailingDrafter(DraftSide):
    """Stumbles in its second sample."""

    def _draft(self) -> Progress:
        if self.order.number == 2:
            misbehave("raise")
        return super()._draft()


class Failing(Scripted):
    draft = FailingDrafter


class FailingAmusd(ScriptedAmusd):
    """For a whole run: the draft fails in one sample, whatever its name."""

    scripted = Failing


# ------------------------------------------------------------------------------------------------ silent at any stage
def fall_silent(how: str) -> None:
    if how == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif how == "hangs":
        time.sleep(3600)
    elif how == "computes":
        until = time.monotonic() + 2.5
        while time.monotonic() < until:
            sum(range(10_000))


class Silent:
    """A program and a model in one that falls silent at one stage of its life, in one of the ways above."""

    def __init__(self, stage: str, how: str):
        self.stage, self.how = stage, how

    def _at(self, stage: str) -> None:
        if stage == self.stage:
            fall_silent(self.how)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._at("starting its process")

    def load(self) -> Any:
        self._at("loading its model")
        return self

    def open(self, model: Any) -> None:
        self._at("opening its program")

    def prepare(self, order: Any) -> None:
        self._at("preparing a sample")

    def run(self) -> None:
        self._at("decoding a sample")


# ------------------------------------------------------------------------------------------------ a tiny pair
VOCAB_SIZE = 61


def save_tiny_pair(folder: Path) -> PairSpec:
    """A target with random weights and a draft that is nearly the target: they agree often and not always."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    module = LlamaForCausalLM(config)
    module.save_pretrained(folder / "target")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    module.save_pretrained(folder / "draft")
    return tiny_pair(folder)


def tiny_pair(folder: Path) -> PairSpec:
    def spec(role: str) -> ModelSpec:
        return ModelSpec(role, role, str(folder / role), "float32", "cpu", None, "sdpa", False)

    return PairSpec("tiny", spec("target"), spec("draft"), VOCAB_SIZE)


def runtime(pair: PairSpec, temperature: float = 0.0, timeout_seconds: float = 60.0, trace: bool = False) -> Runtime:
    target = load_model(pair.target, VOCAB_SIZE)
    law = SamplingLaw(temperature)
    return Runtime(pair, target, None, law, 40, frozenset({3}), timeout_seconds, trace, draft_loader(pair))


def request(number: int = 0, what: str = "sample", max_new_tokens: int = 40) -> Request:
    prompt = tuple((7 * number + 3 * i + 5) % VOCAB_SIZE for i in range(6 + number % 5))
    return Request(what, 0, prompt, max_new_tokens, frozenset({3}), noise_key=number)


def decode_for_ever(folder: str) -> None:
    """Say the worker's process id, then decode until somebody ends this."""
    method = Amusd()
    method.open(runtime(tiny_pair(Path(folder))))
    print(*method.pids(), flush=True)
    number = 0
    while True:
        method.decode(request(number))
        number += 1


def say_and_sleep() -> None:
    print(os.getpid(), flush=True)
    time.sleep(3600)


class SlowToArrive:
    """Takes for ever to be unpickled, as a program whose modules are imported from a slow disk."""

    def __reduce__(self) -> Any:
        return say_and_sleep, ()


def start_for_ever() -> None:
    """A worker that never gets as far as its first line; it says its process id."""
    Worker("draft", dict, cast(Program, SlowToArrive()), Placement((), 1), 60.0)


if __name__ == "__main__":
    decode_for_ever(sys.argv[1])
