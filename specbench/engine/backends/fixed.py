"""Sessions whose forward has one shape per number of rows: what torch.compile and CUDA graphs want (`captures`).

The cache is allocated at its full length, new rows go to slots that a tensor names, the mask covers every slot: a forward over
n rows is one fixed program over buffers that stay where they are. A number of rows that is met for the first time runs as
written, on the same cache; its program is made when the next sequence starts, outside every clock (or by `warm`). Prompts,
states that enter in place of tokens, and parts of the model run as written too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from specbench.config.say import say
from specbench.engine.branching import BranchingSession
from specbench.engine.cache import KVCache, PreallocatedLayer
from specbench.engine.masks import FULL
from specbench.engine.model import Model
from specbench.engine.session import Session
from specbench.measure.sensors.clock import now

MAX_ROWS = 64  # of a program
_STEP = 256  # capacities are multiples of it: another one means all programs anew

Program = Callable[[], Any]


@dataclass(frozen=True)
class Capture:
    """make: of a step over fixed buffers something that does the same and is faster; called while nobody's clock runs.

    layer_seconds: about what that takes for each layer of the model, which is said beforehand; 0: too little to speak of.
    """

    make: Callable[[Program], Program]
    layer_seconds: float = 0.0


class FixedLayer(PreallocatedLayer):
    """One layer; `slots` [n], while a program runs: where the new rows go. Attention then sees the whole buffer."""

    slots: Tensor | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        self.keys.zero_(), self.values.zero_()  # masked rows count for nothing only if they are numbers

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        if self.slots is None:
            return super().update(key_states, value_states, *args, **kwargs)
        assert self.keys is not None and self.values is not None
        self.keys.index_copy_(2, self.slots, key_states)
        self.values.index_copy_(2, self.slots, value_states)
        return self.keys, self.values


class FixedCache(KVCache):
    """All layers; behind `room` positions lie MAX_ROWS that nobody reads, for programs in the making."""

    layers: list[FixedLayer]  # type: ignore[assignment]

    def __init__(self, num_layers: int):
        super().__init__(num_layers)
        self.layers[:] = [FixedLayer() for _ in range(num_layers)]
        self.room = 0

    def reserve(self, capacity: int) -> None:
        if capacity > self.room:
            self.room = -(-capacity // _STEP) * _STEP
            super().reserve(self.room + MAX_ROWS)


class FixedSession(Session):
    """See the module. capture: what makes the programs."""

    def __init__(
        self, model: Model, taps: Sequence[int] = (), cache: Any = None, layers: Any = None, capture: Capture | None = None
    ):
        assert capture is not None
        super().__init__(model, taps, cache if cache is not None else FixedCache(model.num_cache_layers), layers)
        self._capture = capture
        self._programs: dict[int, _Rows] = {}
        self._wanted: set[int] = set()
        self._made_for = 0  # capacity of the buffers that the programs hold

    def start(self, capacity: int) -> None:
        super().start(capacity)
        self.warm(())

    def warm(self, rows: Sequence[int]) -> None:
        self._wanted.update(count for count in rows if count <= MAX_ROWS)
        if self.cache.layers[0].keys is None or not self._wanted:
            return  # buffers are made by the first forward
        if self._made_for != self.cache.room:
            self._programs.clear()
            self._made_for = self.cache.room
        threads = torch.get_num_threads()
        lacking = [n for n in sorted(self._wanted) if n not in self._programs or threads not in self._programs[n].ready_for]
        if lacking:
            self._make(lacking, threads)

    def _make(self, counts: Sequence[int], threads: int) -> None:
        """The programs for so many rows each, with a word about it where it takes long."""
        model = self.model
        about = self._capture.layer_seconds * model.num_cache_layers
        if about:
            role, those = "draft" if model.is_draft else "target", ", ".join(map(str, counts))
            say(f"compiling the {role}'s forwards of {those} rows: about {about:.0f} s for each, less where they were kept")
        for number, count in enumerate(counts, 1):
            begin = now()
            program = self._programs.get(count) or _Rows(self, count)
            program.make_ready(threads)
            self._programs[count] = program
            model.alive()
            if about:
                say(f"compiled {number} of {len(counts)} in {now() - begin:.0f} s")

    @torch.inference_mode()
    def _forward(self, module: Any, mask: Any, positions: Tensor, **inputs: Any) -> Any:
        rows = positions.shape[1]
        is_prompt = self.cache.length == 0  # it comes once, under the model's own mask
        if module is not self.model.module or "input_ids" not in inputs or rows > MAX_ROWS or is_prompt:
            return super()._forward(module, mask, positions, **inputs)
        program = self._programs.get(rows)
        if program is None:
            self._wanted.add(rows)
            return super()._forward(module, mask, positions, **inputs)
        return program(inputs["input_ids"], positions, mask)


class _Rows:
    """The program for one number of rows, and the buffers that it reads."""

    def __init__(self, session: FixedSession, count: int):
        model, cache, device = session.model, session.cache, session.model.device
        self.cache, self.session, self.count = cache, session, count
        capacity, plan = cache.room + MAX_ROWS, model.plan
        self.lowest = torch.finfo(model.dtype).min
        self.ids = torch.zeros((1, count), dtype=torch.int64, device=device)
        self.positions = torch.arange(count, device=device)[None].clone()
        self.slots = torch.arange(cache.room, cache.room + count, device=device)
        kinds = plan.layer_types if plan.window is not None else (FULL,)
        self.masks = {kind: torch.zeros((1, 1, count, capacity), dtype=model.dtype, device=device) for kind in kinds}
        self.given = next(iter(self.masks.values())) if len(self.masks) == 1 else self.masks
        self.program: Program | None = None
        self.ready_for: set[int] = set()

    def make_ready(self, threads: int) -> None:
        """Run once with as many threads as this process has now: what compiles does so at the first run. The text stays."""
        torch.arange(self.cache.room, self.cache.room + self.count, out=self.slots)
        with torch.inference_mode(), self._in_fixed_form():
            self.program = self.program or self.session._capture.make(self._step)
            self.program()
        self.ready_for.add(threads)

    def _step(self) -> Any:
        session = self.session
        output = session.model.module(
            input_ids=self.ids,
            attention_mask=self.given,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
            output_hidden_states=bool(session.tap_layers),
        )
        return output.logits, output.hidden_states

    def __call__(self, ids: Tensor, positions: Tensor, mask: Any) -> Any:
        cache, past = self.cache, self.cache.length
        end = past + self.count
        assert end <= cache.room, f"cache of {cache.room} positions asked for {end}"
        self.ids.copy_(ids)
        self.positions.copy_(positions)
        torch.arange(past, end, out=self.slots)
        for kind, whole in self.masks.items():
            whole.fill_(self.lowest)
            whole[..., :end] = 0.0 if mask is None else mask[kind] if isinstance(mask, dict) else mask
        assert self.program is not None, "make it ready first"
        with self._in_fixed_form():
            logits, hidden = self.program()
        for layer in cache.layers:
            layer.length = end
        # The next run of this program writes to the same places.
        kept = None if hidden is None else {n: hidden[n].clone() for n in self.session.tap_layers}
        return SimpleNamespace(logits=logits.clone(), hidden_states=kept)

    @contextlib.contextmanager
    def _in_fixed_form(self) -> Iterator[None]:
        """While it lasts layers write to the slots, and their lengths, which programs must not depend on, read 0."""
        lengths = self.cache.lengths
        for layer in self.cache.layers:
            layer.slots, layer.length = self.slots, 0
        try:
            yield
        finally:
            for layer, length in zip(self.cache.layers, lengths, strict=True):
                layer.slots, layer.length = None, length


class FixedBranching(FixedSession, BranchingSession):
    """See `engine.branching`."""


def refusal(model: Model) -> str | None:
    """Why a model's forward has no fixed form; None if it has one."""
    if model.is_recurrent:
        return "it keeps a state instead of a cache"
    if model.plan.makes_own:
        return "it makes its mask from the length of the text"
    return "its rotary frequencies change with the length of the text" if model.recomputed_at is not None else None
