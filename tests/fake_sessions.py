"""Sessions without models: the next token is a pure function of the prefix, read from a table that a seed spells out.

`FakeSession` has the whole interface that the two sides of an asynchronous schedule use (start, feed, rollback, length,
prefill, forward, commit, pending) and keeps the tokens it was fed: what a real cache would silently mix up is an assertion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from specbench.engine.request import Request, cut
from specbench.engine.sampling import SamplingLaw
from specbench.engine.tree import DraftTree, Evidence, Verdict

VOCAB_SIZE = 12
EOS_IDS = frozenset({0, 1})

Prefix = tuple[int, ...]
Table = Callable[[Prefix], list[float]]  # prefix -> logits


def _hash(*values: object) -> int:
    return hash(values) & 0x7FFFFFFF  # of ints and tuples of ints: the same in every process


class Language:
    """A target: for every prefix the logits of what comes next. Tokens 0 and 1 end a sequence.

    eos_rate: how often the favourite is an EOS. spread: 0 for logits with one clear favourite, larger for a law to sample from.
    """

    def __init__(self, seed: int, eos_rate: float = 0.03, spread: float = 0.0):
        self.seed, self.eos_rate, self.spread = seed, eos_rate, spread

    def favourite(self, prefix: Prefix) -> int:
        h = _hash(self.seed, prefix)
        if (h >> 8) % 1000 < 1000 * self.eos_rate:
            return h % 2
        return 2 + h % (VOCAB_SIZE - 2)

    def logits(self, prefix: Prefix) -> list[float]:
        row = [self.spread * (_hash(self.seed, prefix, token) % 1000) / 1000 for token in range(VOCAB_SIZE)]
        row[0] -= self.spread
        row[1] -= self.spread
        row[self.favourite(prefix)] += 2.0
        return row


def imitation(language: Language, agrees: Callable[[Prefix], bool], seed: int = 1) -> Table:
    """A draft of a language: its logits where `agrees`, those of a favourite of its own elsewhere (an EOS now and then)."""

    def logits(prefix: Prefix) -> list[float]:
        row = language.logits(prefix)
        if not agrees(prefix):
            h = _hash(seed, prefix)
            wrong = (language.favourite(prefix) + 1 + h % (VOCAB_SIZE - 1)) % VOCAB_SIZE
            row[wrong] += 5.0
        return row

    return logits


def agreement(kind: str, rate: float, seed: int, prompt_length: int) -> Callable[[Prefix], bool]:
    """When a draft is right: "always", "never", "random" (with probability `rate`) or "bursts" (5 right, then 3 wrong)."""
    if kind == "always":
        return lambda prefix: True
    if kind == "never":
        return lambda prefix: False
    if kind == "bursts":
        return lambda prefix: (len(prefix) - prompt_length) % 8 < 5
    assert kind == "random", kind
    return lambda prefix: _hash(seed, prefix) % 1000 < 1000 * rate


class FakeSession:
    """One sequence on a table. `cost`, if given, is called with the rows of every forward (a virtual clock's hand)."""

    can: frozenset[str] = frozenset()

    def __init__(self, table: Table, cost: Callable[[int], None] | None = None):
        self.table, self.cost = table, cost
        self.fed: list[int] = []
        self.pending: int | None = None
        self.capacity = 0
        self.num_forwards = 0
        self._last_start = 0

    @property
    def length(self) -> int:
        return len(self.fed)

    def start(self, capacity: int) -> None:
        self.fed, self.pending, self.capacity = [], None, capacity

    def feed(self, ids: Sequence[int], parents: Sequence[int] | None = None, last_only: bool = False) -> torch.Tensor:
        assert parents is None, "chains only"
        assert len(ids) > 0, "nothing to feed"
        assert len(self.fed) + len(ids) <= self.capacity, "past the reserved capacity"
        self._last_start = len(self.fed)
        self.num_forwards += 1
        rows = []
        for i, token in enumerate(ids):
            self.fed.append(token)
            if not last_only or i == len(ids) - 1:
                rows.append(self.table(tuple(self.fed)))
        if self.cost is not None:
            self.cost(len(ids))
        return torch.tensor(rows)

    def warm(self, rows: Sequence[int]) -> None:
        """There is nothing to make."""

    def rollback(self, length: int) -> None:
        assert 0 <= length <= len(self.fed), f"rollback to {length} of {len(self.fed)}"
        del self.fed[length:]

    def prefill(self, prompt_ids: Sequence[int]) -> Evidence:
        return Evidence(self.feed(prompt_ids, last_only=True), {})

    def forward(self, tree: DraftTree) -> Evidence:
        assert self.pending is not None, "prefill first"
        return Evidence(self.feed([self.pending, *tree.tokens]), {})

    def commit(self, verdict: Verdict) -> None:
        assert verdict.path == tuple(range(len(verdict.path))), "chains only"
        self.rollback(self._last_start + 1 + len(verdict.path))
        self.pending = verdict.extra


class FakeBranching(FakeSession):
    """The same with rows below a trunk: each is answered for the trunk, its ancestors and itself, whatever else was fed."""

    trunk = 0
    row_parents: list[int]

    def branch(self, trunk: int | None = None) -> None:
        self.trunk = self.length if trunk is None else trunk
        self.row_parents = list(range(-1, self.length - self.trunk - 1))

    def grow(self, ids: Sequence[int], parents: Sequence[int]) -> torch.Tensor:
        assert len(ids) > 0, "nothing to feed"
        assert len(self.fed) == self.trunk + len(self.row_parents), "branch first"
        assert len(self.fed) + len(ids) <= self.capacity, "past the reserved capacity"
        assert all(-1 <= parent < len(self.row_parents) for parent in parents), "a row's parent was grown by an earlier call"
        self.num_forwards += 1
        self.row_parents += parents
        self.fed += ids
        if self.cost is not None:
            self.cost(len(ids))
        first = len(self.row_parents) - len(ids)
        return torch.tensor([self.table(self.prefix(row)) for row in range(first, len(self.row_parents))])

    def prefix(self, row: int) -> Prefix:
        path: list[int] = []
        while row >= 0:
            path.append(self.fed[self.trunk + row])
            row = self.row_parents[row]
        return (*self.fed[: self.trunk], *reversed(path))

    def keep(self, rows: Sequence[int]) -> None:
        assert list(rows) == sorted(set(rows)), "ascending"
        assert all(self.row_parents[row] == above for row, above in zip(rows, [-1, *rows], strict=False)), "a path"
        self.fed[self.trunk :] = [self.fed[self.trunk + row] for row in rows]
        self.branch()

    def rollback(self, length: int) -> None:
        super().rollback(length)
        self.branch()


def autoregressive(table: Table, law: SamplingLaw, request: Request) -> tuple[list[int], str]:
    """What the target says on its own: output ids and finish reason."""
    prefix, output = list(request.prompt_ids), list[int]()
    while True:
        token = law.choose(torch.tensor([table(tuple(prefix))]), [len(output)], request.noise_key)[0]
        kept, finish = cut([token], request.max_new_tokens - len(output), request.eos_ids)
        output += kept
        prefix.append(token)
        if finish:
            return output, finish
