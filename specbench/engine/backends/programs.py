"""The programs of `fixed`: steps over buffers that stay where they are, on one session's cache.

    Rows       a forward over some rows; what they see and where they stand come from the host
    Chain      a draft's whole chain: feed, choose, feed the choice, and so on; the host reads once, at the end
    Verify     pending and a drafted chain through the target, its own choice for every row, how many drafts agree with it

A `Chain` and a `Verify` know of the text how long it is: slots, positions and masks follow from that on the device. Nothing in
a step may wait for the device or depend on what is in a tensor: no host read, no shape that data decides, no tensor made from
host numbers. What changes from run to run is put into the buffers beforehand, by copies that nobody waits for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from specbench.engine.masks import FULL, SLIDING
from specbench.engine.ranks import NO_LAW
from specbench.engine.sampling import SamplingLaw, chosen, host_numbers, keyed_gumbel
from specbench.engine.tree import Evidence, Own, Unread

if TYPE_CHECKING:
    from specbench.engine.session import Session

MAX_ROWS = 64  # of a program

Step = Callable[[], Any]


class Program:
    """A step, and what a capture made of it. name: what it is a forward of, for people."""

    def __init__(self, session: Session, name: str):
        self.session, self.cache, self.name = session, session.cache, name
        self.made: Step | None = None
        self.ready_for: set[int] = set()

    def make_ready(self, threads: int, make: Callable[[Step], Step]) -> None:
        """Run once with as many threads as this process has now: what compiles does so at the first run. The text stays."""
        with torch.inference_mode(), self._in_fixed_form():
            self._aim(self.cache.room, 0)  # a position that every model has, and slots that nobody reads
            self.made = self.made or make(self.step)
            self.made()
        self.ready_for.add(threads)

    def step(self) -> Any:
        raise NotImplementedError

    def _aim(self, slot: int, position: int) -> None:
        """From now on the step's rows go to the slots from this one on, and stand at the positions from that one on."""
        raise NotImplementedError

    def _run(self, rows: int) -> Any:
        """The step behind the text, which is `rows` longer then; as written where nothing was made of it yet."""
        end = self.cache.length + rows
        assert end <= self.cache.room, f"cache of {self.cache.room} positions asked for {end}"
        self._aim(self.cache.length, self.cache.length)
        with self._in_fixed_form():
            answer = (self.made or self.step)()
        for layer in self.cache.layers:
            layer.length = end
        return answer

    @contextlib.contextmanager
    def _in_fixed_form(self) -> Iterator[None]:
        """While it lasts layers write to slots, which `_forward` names; their lengths, no step's business, read 0."""
        lengths, device = self.cache.lengths, self.session.model.device
        for layer in self.cache.layers:
            layer.length = 0
        try:
            # A graph is recorded, and started, on the device that is the current one.
            with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
                yield
        finally:
            for layer, length in zip(self.cache.layers, lengths, strict=True):
                layer.slots, layer.length = None, length

    def _forward(self, ids: Tensor, positions: Tensor, slots: Tensor, masks: dict[str, Tensor], **more: Any) -> Any:
        """The module's forward over rows [1, n] that see of all slots what the masks [1, 1, n, slots] leave."""
        session = self.session
        for layer in self.cache.layers:
            layer.slots = slots
        return session.model.module(
            input_ids=ids,
            attention_mask=next(iter(masks.values())) if len(masks) == 1 else masks,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            output_hidden_states=bool(session.tap_layers),
            **more,
        )

    def _taps(self, output: Any) -> Any:
        """Hidden states by tap: others are not held, wherever the answer stays."""
        hidden = output.hidden_states
        return None if hidden is None else {layer: hidden[layer] for layer in self.session.tap_layers}

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers that the step reads and whoever runs it writes; the answer and the cache are none of them."""
        return sum(buffer.nbytes for buffer in self._buffers())

    def _buffers(self) -> Iterator[Tensor]:
        for value in vars(self).values():
            yield from (one for one in (value.values() if isinstance(value, dict) else [value]) if isinstance(one, Tensor))


class Rows(Program):
    """The program for one number of rows."""

    def __init__(self, session: Session, count: int):
        super().__init__(session, f"{count}")
        model, cache, device = session.model, session.cache, session.model.device
        self.count = count
        self.lowest = torch.finfo(model.dtype).min
        self.ids = torch.zeros((1, count), dtype=torch.int64, device=device)
        self.positions = torch.zeros((1, count), dtype=torch.int64, device=device)  # a position that every model has
        self.slots = torch.arange(cache.room, cache.room + count, device=device)
        shape = (1, 1, count, cache.room + MAX_ROWS)
        self.masks = {kind: torch.zeros(shape, dtype=model.dtype, device=device) for kind in kinds_of(session)}

    def step(self) -> Any:
        output = self._forward(self.ids, self.positions, self.slots, self.masks)
        return output.logits, self._taps(output)

    def _aim(self, slot: int, position: int) -> None:
        torch.arange(slot, slot + self.count, out=self.slots)  # positions and masks come with a call

    def __call__(self, ids: Tensor, positions: Tensor, mask: Any) -> Any:
        self.ids.copy_(ids)
        self.positions.copy_(positions)
        end = self.cache.length + self.count
        for kind, whole in self.masks.items():
            whole.fill_(self.lowest)
            whole[..., :end] = 0.0 if mask is None else mask[kind] if isinstance(mask, dict) else mask
        logits, hidden = self._run(self.count)
        return SimpleNamespace(logits=logits.clone(), hidden_states=_kept(hidden))


class _Choosing(Program):
    """What `Chain` and `Verify` share: rows behind a length that the device knows, and tokens chosen there.

    fed: ids that are put in; num_choices: tokens chosen. Under a law with a temperature their noise is put in too.
    """

    def __init__(self, session: Session, name: str, law: SamplingLaw, fed: int, num_choices: int):
        super().__init__(session, name)
        model, device = session.model, session.model.device
        self.law, self.fed, self.num_choices = law, fed, num_choices
        self.lowest = torch.finfo(model.dtype).min
        self.given = torch.zeros(fed, dtype=torch.int64, device=device)
        self.slot, self.position = (torch.zeros(1, dtype=torch.int64, device=device) for _ in range(2))  # of the first row
        self.columns = torch.arange(session.cache.room + MAX_ROWS, device=device)
        self.noise = None if law.greedy else torch.zeros((num_choices, model.vocab_size), device=device)

    def _aim(self, slot: int, position: int) -> None:
        self.slot.fill_(slot)
        self.position.fill_(position)

    def _put(self, ids: Sequence[int], position: int, noise_key: int) -> None:
        """The first ids, and the noise of the output positions from `position` on."""
        model = self.session.model
        put(self.given[: len(ids)], model.rows_of(ids))
        if self.noise is not None:
            positions = range(position, position + self.num_choices)
            self.noise.copy_(keyed_gumbel(noise_key, positions, model.vocab_size, model.device))

    def _behind(self, ids: Tensor, done: int, **more: Any) -> Any:
        """The forward over a chain of ids [n], behind `done` rows of the same step."""
        model, rows = self.session.model, self.columns[done : done + len(ids)]
        slots = self.slot + rows
        distance = slots[:, None] - self.columns[None]  # in a chain of slots as of positions
        hidden = {FULL: distance < 0}
        if model.plan.window is not None:
            hidden[SLIDING] = (distance < 0) | (distance >= model.plan.window)
        whole = torch.zeros(distance.shape, dtype=model.dtype, device=distance.device)
        masks = {kind: whole.masked_fill(hidden[kind], self.lowest)[None, None] for kind in kinds_of(self.session)}
        return self._forward(ids[None], (self.position + rows)[None], slots, masks, **more)

    def _choice(self, logits: Tensor, first: int) -> Tensor:
        """The tokens that rows of logits [n, vocab] are followed by, the first of them the `first` of all that are chosen."""
        scores = logits if self.noise is None else self.law.warp(logits) + self.noise[first : first + len(logits)]
        return chosen(scores)

    def _answer(self, logits: Tensor) -> Tensor:
        return logits[:, : self.session.model.vocab_size]


class Chain(_Choosing):
    """`length` tokens behind `fed` ids; all are fed but the last. Chosen as `SamplingLaw.choose` does."""

    def __init__(self, session: Session, law: SamplingLaw, fed: int, length: int):
        super().__init__(session, f"{fed} to {fed + length - 1}", law, fed, length)
        self.extra = {"logits_to_keep": 1} if session.model.accepts_logits_to_keep else {}

    def step(self) -> Tensor:
        tokens: list[Tensor] = []
        ids, done = self.given, 0
        for number in range(self.num_choices):
            logits = self._answer(self._behind(ids, done, **self.extra).logits[0, -1:])
            tokens.append(self._choice(logits, number))
            # Without a law (-1) there is an error to come, and any id will do until it is read.
            done, ids = done + len(ids), tokens[-1].clamp(min=0)
        return torch.cat(tokens)

    def __call__(self, ids: Sequence[int], position: int, noise_key: int) -> Unread:
        self._put(ids, position, noise_key)
        tokens: Tensor = self._run(self.fed + self.num_choices - 1)
        return Unread(tokens.clone(), self.session.model.vocab_size)


class Verify(_Choosing):
    """Pending and the drafts behind it: logits and taps, and in one short tensor what the host has to know."""

    def __init__(self, session: Session, law: SamplingLaw, count: int):
        super().__init__(session, f"{count}", law, count, count)

    def step(self) -> Any:
        drafted = self.given[1:]
        output = self._behind(self.given.clamp(min=0), 0)
        logits = self._answer(output.logits[0])
        choice = self._choice(logits, 0)
        agreed = (choice[:-1] == drafted).long().cumprod(0).sum(0, keepdim=True)
        return logits, self._taps(output), torch.cat([agreed, choice, drafted])

    def __call__(self, pending: int, drafted: Sequence[int], position: int, noise_key: int) -> tuple[Evidence, Any]:
        """Evidence without taps, and what they are taken from."""
        unread = drafted if isinstance(drafted, Unread) and drafted.lies_on(self.given.device) else None
        self._put([pending, *(drafted if unread is None else ())], position, noise_key)
        if unread is not None:
            self.given[1:].copy_(unread.on_device)
        logits, hidden, said = self._run(self.fed)
        logits, hidden = logits.clone(), _kept(hidden)
        agreed, *ids = said.tolist()  # the round's one wait for the device
        if unread is not None:
            unread.tell(ids[self.fed :])
        if min(ids[: self.fed]) < 0:
            raise ValueError(NO_LAW)
        return Evidence(logits, {}, own=Own(ids[: self.fed], agreed)), hidden


def kinds_of(session: Session) -> Sequence[str]:
    """The masks that the model wants."""
    plan = session.model.plan
    return plan.layer_types if plan.window is not None else (FULL,)


def put(buffer: Tensor, numbers: Sequence[int]) -> None:
    """Numbers of the host into a buffer; nobody waits for the device."""
    buffer.copy_(host_numbers(numbers, buffer.device), non_blocking=True)


def _kept(hidden: Any) -> Any:
    """Hidden states by tap, where the next run does not write."""
    return None if hidden is None else {layer: states.clone() for layer, states in hidden.items()}
