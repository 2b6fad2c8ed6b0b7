"""A session whose forward is forward.cpp: the same calls as `engine.session`, a row's logits the same bits in any company."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from specbench.engine import threads
from specbench.engine.backends.native.cache import NativeCache
from specbench.engine.backends.native.weights import Call, NativeWeights
from specbench.engine.branching import Branching
from specbench.engine.model import Model
from specbench.engine.narrow import Narrow
from specbench.engine.ranks import NO_LAW
from specbench.engine.session import Session
from specbench.engine.tree import Own

if TYPE_CHECKING:
    from specbench.engine.sampling import SamplingLaw
    from specbench.engine.tree import DraftTree, Evidence


class NativeSession(Session):
    """One sequence on one model, or on some of its layers. See `Session`."""

    def __init__(
        self, model: Model, taps: Sequence[int] = (), cache: NativeCache | None = None, layers: Sequence[int] | None = None
    ):
        assert model.native is not None, "pack its weights first"
        self.weights: NativeWeights = model.native
        super().__init__(model, taps, cache if cache is not None else NativeCache(self.weights), layers)
        self._is_whole = layers is None
        self._numbers = array("q", self.layers)
        self._call_of = Call(layers=self._numbers.buffer_info()[0], num_layers=len(self._numbers))
        self._address = ctypes.addressof(self._call_of)
        self._bound: tuple[Any, Any] = (None, None)  # tables and keys whose pointers the call holds
        self._firsts = array("q")  # by answered row, the id of its greatest logit; -1: they make no law
        self._written: Tensor | None = None  # the logits of the last forward, which these are of
        self._call_of.num_ranked = model.vocab_size if self.weights.reduced is None else len(self.weights.reduced_ids)
        self._room: Tensor | None = None  # for logits that nobody sees
        total = len(self._numbers) + 1
        self._places = {layer: layer % total for layer in self.tap_layers}
        if self.tap_layers:
            self._tap_pointers = (ctypes.c_void_p * total)()
            self._call_of.taps = ctypes.addressof(self._tap_pointers)

    @cached_property
    def can(self) -> frozenset[str]:
        able = {"tree", "taps", "riders", "logits", "layers", "fork", "choice"}
        # Who answers in the model's place (a script) does so between forwards.
        return frozenset(able | ({"chain"} if type(self.model).answer is Model.answer else set()))

    def feed(
        self,
        ids: Sequence[int] | Tensor,
        *,
        last_only: bool = False,
        parents: Sequence[int] | None = None,
        depths: Sequence[int] | None = None,
    ) -> Tensor:
        past = self.length
        self._last_start = past
        return self._logits(ids, past, past, parents, depths, last_only)

    def forward_and_choose(self, tree: DraftTree, law: SamplingLaw, position: int, noise_key: int) -> Evidence:
        """`forward` without riders; of a greedy target its own tokens are those that the forward has found on the way."""
        evidence = self.forward(tree)
        if law.greedy and evidence.logits is self._written:
            rows = 1 + len(tree.tokens)
            tokens = self._firsts[:rows].tolist()
            if min(tokens) >= 0:  # whoever judges says what is wrong with the others
                agreed = 0
                if tree.parents is None:
                    while agreed < rows - 1 and tokens[agreed] == tree.tokens[agreed]:
                        agreed += 1
                evidence.own = Own(tokens, agreed)
        return evidence

    def chain(self, ids: Sequence[int], length: int, law: SamplingLaw, position: int, noise_key: int) -> list[int] | None:
        """See `engine.target.Chaining`; of a greedy law alone. Raises ValueError for logits that make no law."""
        assert length > 0, "nothing to draft"
        reduced, past, call = self.weights.reduced, self.length, self._call_of
        if not law.greedy or self.tap_layers or (reduced is not None and reduced.vocab_size != self.model.vocab_size):
            return None
        if self._room is None:
            self._room = torch.empty(1, self.weights.outputs)
            self._room_at = self._room.data_ptr()
        self._last_start, self._written = past, None
        call.logits, call.last = self._room_at, None
        self._find(1)
        return self._run(ids, past, past, None, None, chain=length)

    def _find(self, rows: int) -> None:
        """The next forward answers so many rows."""
        if len(self._firsts) < rows:
            self._firsts = array("q", bytes(8 * rows))
            self._call_of.firsts = self._firsts.buffer_info()[0]

    def _logits(
        self,
        ids: Sequence[int] | Tensor,
        past: int,
        trunk: int,
        parents: Sequence[int] | None,
        depths: Sequence[int] | None,
        last_only: bool = False,
    ) -> Tensor:
        rows, call, weights = len(ids), self._call_of, self.weights
        call.first_logit = rows - 1 if last_only else 0
        answered = 1 if last_only else rows
        logits = torch.empty(answered, weights.outputs)
        call.logits, call.last = logits.data_ptr(), None
        self._find(answered)
        if self.tap_layers:
            tapped = {place: torch.empty(rows, weights.shape.width) for place in self._places.values()}
            for place, hidden in tapped.items():
                self._tap_pointers[place] = hidden.data_ptr()
            self._tapped = {layer: tapped[place] for layer, place in self._places.items()}
        self._run(ids, past, trunk, parents, depths)
        if weights.reduced is not None:
            size = len(weights.reduced_ids)
            rows_of = logits if size == weights.outputs else logits[:, :size]
            memory = (call.logits or 0, weights.outputs, size, weights.reduced_at)
            logits = Narrow(rows_of, weights.reduced, weights.reduced_ids, memory)
        said = self.model.answer(logits, past, rows)
        # Where a script speaks for the model, what was answered lies somewhere else.
        is_own = weights.reduced is None and (said is logits or said.data_ptr() == call.logits)
        self._written = said if is_own else None
        return said

    def _run(
        self,
        ids: Sequence[int] | Tensor,
        past: int,
        trunk: int,
        parents: Sequence[int] | None,
        depths: Sequence[int] | None,
        chain: int = 0,
    ) -> list[int]:
        """parents, depths: of all rows behind the trunk, those fed before included. chain: so many tokens of its own follow,
        and all but the last are fed too; they are returned."""
        call, cache, weights, rows = self._call_of, self.cache, self.weights, len(ids)
        end = past + rows + (chain - 1 if chain else 0)
        assert rows > 0, "nothing to feed"
        assert end <= cache.capacity, f"cache of {cache.capacity} positions asked for {end}"
        if isinstance(ids, Tensor):
            states = ids.float().contiguous()
            assert states.shape == (rows, weights.shape.width), "rows of the model's width"
            call.ids, call.states = None, states.data_ptr()
        else:
            fed = array("q", self.model.rows_of(ids))
            assert min(fed) >= 0, "ids are not negative"
            call.ids, call.states = fed.buffer_info()[0], None
        if parents is None and depths is not None:
            parents = range(-1, rows - 1)
        furthest = end
        call.parents = call.depths = None
        if parents is not None:
            below = array("q", parents)
            assert len(below) == end - trunk, "one parent per row"
            call.parents = below.buffer_info()[0]
            if depths is not None:
                given = array("q", depths)
                assert len(given) == end - trunk and min(given) >= 0, "one depth per row"
                furthest = trunk + max(given) + 1
                call.depths = given.buffer_info()[0]
        tables = weights.tables(furthest)
        if self._bound[0] is not tables or self._bound[1] is not cache.key_pointers:
            call.cosines, call.sines = tables[0].data_ptr(), tables[1].data_ptr()
            call.keys, call.values = ctypes.addressof(cache.key_pointers), ctypes.addressof(cache.value_pointers)
            call.capacity, self._bound = cache.capacity, (tables, cache.key_pointers)
        call.rows, call.past, call.trunk, call.threads = rows, past, trunk, threads.count()
        is_whole = self._is_whole and call.num_layers == len(cache.lengths)
        if not is_whole:
            cache.settle()
        unmoved = cache.unmoved
        if unmoved is not None:
            call.kept_from, kept = unmoved
            call.kept, call.num_kept = kept.buffer_info()[0], len(kept)
        tokens, made = array("q", bytes(8 * chain)), 0
        if chain:
            names = weights.reduced_at if weights.reduced is not None else None
            made = weights.library.sb_chain(weights.reference, self._address, names, chain, tokens.buffer_info()[0])
        else:
            weights.library.sb_forward(weights.reference, self._address)
        if unmoved is not None:
            cache.unmoved, call.num_kept = None, 0
        if is_whole:
            cache.lengths = [end] * len(cache.lengths)
        else:
            cache.cut(end, self.layers)
        if made < chain:
            raise ValueError(NO_LAW)
        return tokens.tolist()

    def part(self, layers: Sequence[int], final_norm: bool = True) -> NativeSession:
        assert final_norm, "run_layers gives states that no norm has seen"
        key = tuple(layers)
        if key not in self._parts:
            self._parts[key] = NativeSession(self.model, cache=self.cache, layers=list(layers))
        return self._parts[key]  # type: ignore[return-value]

    def run_layers(self, rows: Sequence[int] | Tensor, first: int, last: int, parents: Sequence[int] | None = None) -> Tensor:
        part, past = self.part(range(first, last)), self.cache.lengths[first]
        hidden = torch.empty(len(rows), self.weights.shape.width)
        part._call_of.last, part._call_of.logits = hidden.data_ptr(), None
        part._run(rows, past, past, parents, None)
        return hidden

    def exit_logits(self, hidden: Tensor) -> Tensor:
        return self.part(()).head(hidden)

    def head(self, hidden: Tensor) -> Tensor:
        """Of a session on no layers: what norm and LM head say, [n, vocab]."""
        assert not self.layers
        return self._logits(hidden, 0, 0, None, None)


class NativeBranching(Branching, NativeSession):
    """See `engine.branching`."""

    def __init__(self, model: Model, taps: Sequence[int] = ()):
        super().__init__(model, taps)
        self.branch()

    def grow(self, ids: Sequence[int] | Tensor, parents: Sequence[int]) -> Tensor:
        past = self._append(parents)
        self._last_start = past
        return self._logits(ids, past, self.trunk, self.row_parents, None)
