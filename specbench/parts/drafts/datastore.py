"""A corpus of token ids with its suffix array: where a run of tokens stands in it, and what follows there most often.

A folder: tokens.npy, order.npy (every place, sorted by the DEPTH tokens from there on, equals by place) and datastore.json.
`python -m specbench.train part=datastore` makes one.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specbench.config.options import ConfigError, UnfitError
from specbench.parts.described import read_description

DEPTH = 32  # tokens by which places are sorted
LOOKED_AT = 4096  # rows that are checked before anything is looked up
KEY = "method.datastore"
COMMAND = f"python -m specbench.train part=datastore pair=<pair> train.out=<folder>, then {KEY}=<folder>"
_TOKENS, _ORDER, _FACTS = "tokens.npy", "order.npy", "datastore.json"


def suffix_order(tokens: NDArray[Any]) -> NDArray[np.int32]:
    """All places, sorted by the DEPTH tokens from there on (Manber and Myers 1990: known halves are doubled), then by place."""
    rank = np.asarray(tokens, dtype=np.int64)
    order = np.argsort(rank, kind="stable")
    known = 1
    while known < min(DEPTH, len(rank)):
        behind = np.zeros_like(rank)
        behind[: len(rank) - known] = rank[known:] + 1  # 0: the corpus is over
        key = rank * (int(rank.max(initial=0)) + 2) + behind
        order = np.argsort(key, kind="stable")
        ordered = key[order]
        rank = np.empty_like(rank)
        rank[order] = np.concatenate([[0], np.cumsum(ordered[1:] != ordered[:-1])])[: len(rank)]
        known *= 2
    return order.astype(np.int32)


def _in_order(tokens: NDArray[Any], order: NDArray[Any], vocab_size: int) -> bool:
    """Whether some rows, evenly spread, are places in the corpus, sorted by the token that stands there. Not all: they stay on
    the disk until they are needed."""
    places = np.asarray(order[:: max(1, len(order) // LOOKED_AT)])
    if ((places < 0) | (places >= len(tokens))).any():
        return False
    found = np.asarray(tokens[places])
    return bool(((found >= 0) & (found < vocab_size)).all() and (found[1:] >= found[:-1]).all())


class Datastore:
    """end_id: stands between documents; what is looked up and what is found never reaches across."""

    def __init__(self, tokens: NDArray[Any], order: NDArray[np.int32], end_id: int, vocab_size: int):
        self.tokens, self.order, self.end_id, self.vocab_size = tokens, order, end_id, vocab_size

    @classmethod
    def build(cls, tokens: Sequence[int] | NDArray[Any], end_id: int, vocab_size: int) -> Datastore:
        array = np.asarray(tokens, dtype=np.int32)
        return cls(array, suffix_order(array), end_id, vocab_size)

    def save(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """facts: beside what is needed to load it (where the texts came from, their licences)."""
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / _TOKENS, self.tokens)
        np.save(folder / _ORDER, self.order)
        own = {"end_id": self.end_id, "vocab_size": self.vocab_size, "num_tokens": len(self.tokens)}
        (folder / _FACTS).write_text(json.dumps({**own, **facts}, indent=1) + "\n")

    @staticmethod
    def look_up(name: object) -> Path:
        """The folder that the option names. Raises ConfigError naming method.datastore, UnfitError where it names none."""
        if not isinstance(name, str) or not (Path(name) / _FACTS).is_file():
            raise (UnfitError if name is None else ConfigError)(KEY, name, f"no datastore there; make one: {COMMAND}")
        return Path(name)

    @classmethod
    def load(cls, name: object, vocab_size: int) -> Datastore:
        """Read where they lie, as they are needed. Raises ConfigError naming method.datastore."""
        folder = cls.look_up(name)
        facts = read_description(folder / _FACTS, KEY, {"vocab_size": int, "end_id": int, "num_tokens": int})
        if facts["vocab_size"] > vocab_size:
            raise ConfigError(KEY, name, f"made with a vocabulary of {facts['vocab_size']}, the target's is {vocab_size}")
        try:
            tokens, order = (np.asarray(np.load(folder / file, mmap_mode="r")) for file in (_TOKENS, _ORDER))
        except (OSError, ValueError, EOFError) as error:
            raise ConfigError(KEY, name, f"cannot be read: {' '.join(str(error).split())[:200]}") from error
        if any(array.shape != (facts["num_tokens"],) or array.dtype != np.int32 for array in (tokens, order)):
            raise ConfigError(KEY, name, f"damaged: it says that it has {facts['num_tokens']} tokens; make it again: {COMMAND}")
        if not _in_order(tokens, order, facts["vocab_size"]):  # nothing would be found, and the method look useless
            raise ConfigError(KEY, name, f"damaged: {_ORDER} does not sort {_TOKENS}; make it again: {COMMAND}")
        return cls(tokens, order, facts["end_id"], facts["vocab_size"])

    def find(self, pattern: list[int]) -> tuple[int, int]:
        """The rows of `order` whose places begin with `pattern` (at most DEPTH tokens): [first, last)."""

        def at(row: int) -> list[int]:
            place = int(self.order[row])
            found: list[int] = self.tokens[place : place + len(pattern)].tolist()
            return found

        rows = range(len(self.order))
        return bisect_left(rows, pattern, key=at), bisect_right(rows, pattern, key=at)

    def find_longest(self, text: Sequence[int], longest: int, shortest: int) -> tuple[int, int, int]:
        """(length, first, last) of the longest end of `text` that stands in the corpus; length 0 where none of `shortest` does.

        Where a run of tokens stands its own ends stand too, so that the length is searched by halves.
        """
        if self.end_id in text:
            text = text[len(text) - list(reversed(text)).index(self.end_id) :]
        best = (0, 0, 0)
        low, high = shortest, min(longest, DEPTH, len(text))
        while low <= high:
            length = (low + high) // 2
            first, last = self.find(list(text[-length:]))
            if first < last:
                best, low = (length, first, last), length + 1
            else:
                high = length - 1
        return best

    def continuations(
        self, length: int, first: int, last: int, max_hits: int, max_depth: int, num_nodes: int
    ) -> tuple[list[int], list[int]]:
        """Tokens and parents of the `num_nodes` most frequent beginnings of what follows the `length` tokens of these rows.

        Of more than `max_hits` rows that many are looked at, evenly spread. Of equally frequent ones the shorter goes first,
        then the smaller in the order of ids: the same tree every time.
        """
        count = min(last - first, max_hits)
        rows = first + np.arange(count) * (last - first) // count
        places = self.order[rows].astype(np.int64)[:, None] + length + np.arange(max_depth)
        follow = np.where(places < len(self.tokens), self.tokens[np.minimum(places, len(self.tokens) - 1)], self.end_id)
        over = np.logical_or.accumulate(follow == self.end_id, axis=1)
        # Rows are sorted, so that equal beginnings stand together: a group begins where one of its tokens differs from above.
        begins = np.ones((count, max_depth), dtype=bool)
        begins[1:] = np.logical_or.accumulate(follow[1:] != follow[:-1], axis=1)
        group = np.flatnonzero(begins.T)  # by depth; the first row begins one in each
        size = np.diff(group, append=count * max_depth)
        inside = ~over.T.ravel()[group]
        column, start = np.divmod(group[inside], count)
        key = (column - size[inside] * max_depth) * count + start
        best = np.argpartition(key, num_nodes)[:num_nodes] if len(key) > num_nodes else np.arange(len(key))
        best = best[np.argsort(key[best])]
        owner = np.maximum.accumulate(np.where(begins, np.arange(count)[:, None], 0), axis=0)
        nodes: dict[tuple[int, int], int] = {}
        tokens: list[int] = []
        parents: list[int] = []
        for depth, row in zip(column[best].tolist(), start[best].tolist(), strict=True):
            parents.append(nodes[depth - 1, int(owner[row, depth - 1])] if depth else -1)
            nodes[depth, row] = len(tokens)
            tokens.append(int(follow[row, depth]))
        return tokens, parents

    @property
    def nbytes(self) -> int:
        return int(self.tokens.nbytes + self.order.nbytes)
