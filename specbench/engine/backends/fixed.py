"""Sessions whose forward has one shape per number of rows: what torch.compile and CUDA graphs want (`captures`).

The cache is allocated at its full length, new rows go to slots that a tensor names, the mask covers every slot: a forward over
n rows is one fixed program over buffers that stay where they are (`programs`). What is met for the first time runs as written,
on the same cache; its program is made when the next sequence starts, outside every clock (or by `warm`). Prompts, states that
enter in place of tokens, and parts of the model run as written too.

Where it is worth it (`Capture.at_once`), a draft's chain is one program (`chain`), and so is the target's forward with its own
choice for every row (`forward_and_choose`): then a round waits for the device once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from specbench.config.say import say
from specbench.engine.backends.programs import MAX_ROWS, Chain, Program, Rows, Step, Verify
from specbench.engine.branching import BranchingSession
from specbench.engine.cache import KVCache, PreallocatedLayer
from specbench.engine.model import Model
from specbench.engine.sampling import SamplingLaw
from specbench.engine.session import Session
from specbench.engine.tree import DraftTree, Evidence, Unread
from specbench.measure.sensors.clock import made_for, now

_STEP = 256  # capacities are multiples of it: another one means all programs anew
_took: WeakKeyDictionary[Any, float] = WeakKeyDictionary()  # most seconds that a program took, by module
_LEAD = 2  # rows at most that begin a chain in its program: a fully accepted round leaves two unfed


@dataclass(frozen=True)
class Capture:
    """make: of a step over fixed buffers something that does the same and is faster; called while nobody's clock runs.

    layer_seconds: about what that takes for each layer of the model, which is said before anything of it was made; 0: too
    little to speak of.
    at_once: whether several forwards and what is chosen between them are worth a program.
    """

    make: Callable[[Step], Step]
    layer_seconds: float = 0.0
    at_once: bool = False


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
        self.capture = capture
        self._programs: dict[Hashable, Program] = {}
        self._wanted: dict[Hashable, Callable[[], Program]] = {}
        self._made_for = 0  # capacity of the buffers that the programs hold

    @cached_property
    def can(self) -> frozenset[str]:
        # Who answers in the model's place (a script) does so between forwards.
        whole = self.capture.at_once and type(self.model).answer is Model.answer
        return super().can | ({"chain", "choice"} if whole else set())

    def start(self, capacity: int) -> None:
        super().start(capacity)
        self.warm(())

    def warm(self, rows: Sequence[int]) -> None:
        for count in sorted(count for count in rows if count <= MAX_ROWS):
            self._want_rows(count)
        if self.cache.layers[0].keys is None or not self._wanted:
            return  # buffers are made by the first forward
        self._drop_stale()
        threads = torch.get_num_threads()
        for key, create in self._wanted.items():
            if key not in self._programs:
                self._programs[key] = create()
        lacking = [program for program in self._programs.values() if threads not in program.ready_for]
        if lacking:
            self._make(lacking, threads)

    @property
    def program_bytes(self) -> dict[str, int]:
        """Bytes beside the cache. programs: of their buffers; recordings: of device memory that was reserved to record them."""
        made = [getattr(program.made, "reserved_bytes", None) for program in self._programs.values()]
        held = {"programs": sum(program.nbytes for program in self._programs.values())}
        recorded = [size for size in made if size is not None]
        return held | ({"recordings": sum(recorded)} if recorded else {})

    def _want_rows(self, count: int) -> None:
        self._wanted.setdefault(count, lambda: Rows(self, count))

    def _drop_stale(self) -> None:
        """The buffers have become others: programs that hold those of before are of no use."""
        if self._made_for != self.cache.room:
            self._programs.clear()
            self._made_for = self.cache.room

    def _make(self, lacking: Sequence[Program], threads: int) -> None:
        """Make these programs, with a word about it where it takes long."""
        model = self.model
        takes_long = self.capture.layer_seconds > 0
        if takes_long:
            role, those = "draft" if model.is_draft else "target", ", ".join(program.name for program in lacking)
            took = _took.get(model.module)
            about = self.capture.layer_seconds * model.num_cache_layers if took is None else took
            what = "about" if took is None else "as before at most"
            say(f"compiling the {role}'s forwards of {those} rows: {what} {about:.0f} s for each, less where they were kept")
        for number, program in enumerate(lacking, 1):
            begin = now()
            program.make_ready(threads, self.capture.make)
            model.alive()
            seconds = now() - begin
            made_for(seconds)
            if takes_long:
                _took[model.module] = max(_took.get(model.module, 0.0), seconds)
                say(f"compiled {number} of {len(lacking)} in {seconds:.0f} s")

    @torch.inference_mode()
    def _forward(self, module: Any, mask: Any, positions: Tensor, **inputs: Any) -> Any:
        rows = positions.shape[1]
        is_prompt = self.cache.length == 0  # it comes once, under the model's own mask
        if module is not self.model.module or "input_ids" not in inputs or rows > MAX_ROWS or is_prompt:
            return super()._forward(module, mask, positions, **inputs)
        program = self._programs.get(rows)
        if not isinstance(program, Rows):
            self._want_rows(rows)
            return super()._forward(module, mask, positions, **inputs)
        return program(inputs["input_ids"], positions, mask)

    # Several things at once. What has no program yet runs its step as written: the same ids, with a wait for nobody.

    def _at_once(self, key: Hashable, create: Callable[[], Program]) -> Program:
        self._drop_stale()
        program = self._programs.get(key)
        if program is None:
            self._wanted[key] = create
            program = self._programs[key] = create()
        return program

    @torch.inference_mode()
    def chain(self, ids: Sequence[int], length: int, law: SamplingLaw, position: int, noise_key: int) -> Unread | None:
        """Feed ids and then, one behind the other, `length` tokens of its own choice but the last; these tokens.

        position: where the first of them will stand in the output. None for a chain that is too long for a program.
        """
        if _LEAD + length > MAX_ROWS:
            return None
        if len(ids) > _LEAD or not self.length:
            self.feed(ids[:-1], last_only=True)
            ids = ids[-1:]
        lead = len(ids)
        program = self._at_once(("chain", lead, length, law), lambda: Chain(self, law, lead, length))
        assert isinstance(program, Chain)
        return program(ids, position, noise_key)

    @torch.inference_mode()
    def forward_and_choose(self, tree: DraftTree, law: SamplingLaw, position: int, noise_key: int) -> Evidence:
        """`forward` without riders, and of a chain the target's own tokens in the evidence (`Evidence.own`)."""
        assert self.pending is not None, "prefill first"
        rows = 1 + len(tree.tokens)
        if rows > MAX_ROWS or not tree.is_chain:
            return self.forward(tree)
        program = self._at_once(("verify", rows, law), lambda: Verify(self, law, rows))
        assert isinstance(program, Verify)
        self._last_start = self.length
        evidence, hidden = program(self.pending, tree.tokens, position, noise_key)
        if hidden is not None:
            self._tapped = {layer: hidden[layer][0] for layer in self.tap_layers}
            evidence.taps = self._tapped
        return evidence


class FixedBranching(FixedSession, BranchingSession):
    """See `engine.branching`."""


def refusal(model: Model) -> str | None:
    """Why a model's forward has no fixed form; None if it has one."""
    if model.is_recurrent:
        return "it keeps a state instead of a cache"
    if model.plan.makes_own:
        return "it makes its mask from the length of the text"
    return "its rotary frequencies change with the length of the text" if model.recomputed_at is not None else None


def unrecordable(model: Model) -> str | None:
    """Why no graph can hold the forward of a model without numbers (on the meta device); None if nothing speaks against it.

    It is run there: what has no numbers cannot be asked for one, and whoever asks says so. Other errors are no answer.
    """
    session = FixedSession(model, capture=Capture(lambda step: step))
    try:
        session.start(4)
        session.feed([0, 0], last_only=True)
        Rows(session, 2).make_ready(0, session.capture.make)
    except (RuntimeError, NotImplementedError) as error:
        if "meta" in str(error).lower():
            return "its forward asks the device for numbers on the way"
    return None
