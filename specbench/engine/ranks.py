"""The greatest scores of rows and what they are as probabilities: one place for drafts that rank a vocabulary.

Where a model of this process runs in `backends.native` the rows are read there, each once for its greatest and once for the sum
of its exponentials, and of a reduced head's (`narrow`) those ids alone that it has rows for; elsewhere torch and numpy do the
same. Between two forwards Python is cold and an object costs microseconds: `ranked` gives two flat lists for that.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from specbench.engine import threads
from specbench.engine.backends.native import build
from specbench.engine.narrow import Narrow, narrow_rows

NO_LAW = "the logits hold NaN or infinity: no token follows from them (broken weights, or a number format that overflowed)"
_WHOLE, _DOUBLE, _FLOAT = array("q", [0]), array("d", [0.0]), array("f", [0.0])  # so many of them are room for answers
_SPAN, _FEW = 16, 1 << 16  # of `greatest`: ids in a column, and numbers that are not worth a second look


def greatest(scores: Tensor, count: int, rows: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
    """The `count` greatest of each row of scores [n, V], best first, and their ids; of `rows` alone, in their order, if given.

    As topk, NaN being the greatest of all; of equals any, and natively the smaller id. Elsewhere on the CPU every (V / 16)-th
    id is one column: the greatest are in the columns of the greatest maxima, or behind the last column. A fifth of topk's time
    on 49,152 ids; those maxima are taken of all rows, for a copy of some costs more.
    """
    vocab_size = scores.shape[1]
    if (found := _natively(scores, count, rows, False)) is not None:
        values, ids = (np.frombuffer(part, part.typecode).reshape(-1, min(count, vocab_size)) for part in (found[1], found[0]))
        return torch.from_numpy(values), torch.from_numpy(ids)
    few = scores.numel() < _FEW or vocab_size < 4 * count * _SPAN
    if few or not scores.is_cpu or scores.dtype not in (torch.float32, torch.float64):
        best = (scores if rows is None else scores[rows]).topk(min(count, vocab_size), dim=-1)
        return best.values, best.indices
    width = vocab_size // _SPAN
    maxima = scores[:, : width * _SPAN].unflatten(-1, (_SPAN, width)).amax(dim=1)  # over whole vectors
    chosen = np.arange(len(scores)) if rows is None else np.array(rows)
    columns = (maxima if rows is None else maxima[chosen]).topk(count, dim=-1, sorted=False).indices.numpy()
    ids = (np.arange(_SPAN)[:, None] * width + columns[:, None]).reshape(len(chosen), -1)
    if vocab_size % _SPAN:
        rest = np.broadcast_to(np.arange(width * _SPAN, vocab_size), (len(chosen), vocab_size % _SPAN))
        ids = np.concatenate([ids, rest], axis=1)
    values, row = scores.detach().numpy()[chosen[:, None], ids], np.arange(len(chosen))[:, None]
    places = values.argpartition(-count, axis=1)[:, -count:]
    places = places[row, values[row, places].argsort(axis=1)[:, ::-1]]  # NaN is the greatest of all
    return torch.from_numpy(values[row, places]), torch.from_numpy(ids[row, places])


def best(
    scores: Tensor, count: int, rows: Sequence[int] | None = None, names: Tensor | None = None
) -> tuple[list[int], list[float]]:
    """Ids and scores of `greatest`, one row behind the other. names: what the columns are called, int64 [V], ascending."""
    if (found := best_natively(scores, count, rows, names)) is not None:
        return found
    values, ids = greatest(scores, count, rows)
    return (ids if names is None else names[ids]).flatten().tolist(), values.flatten().tolist()


def best_natively(
    scores: Tensor, count: int, rows: Sequence[int] | None = None, names: Tensor | None = None
) -> tuple[list[int], list[float]] | None:
    """`best`, of equals the smaller id first; None where others have to find them."""
    found = _natively(scores, count, rows, False, names=names)
    return None if found is None else (found[0].tolist(), found[1].tolist())


def likeliest(scores: Tensor, count: int, rows: Sequence[int] | None = None) -> tuple[list[list[int]], list[list[float]]]:
    """The `count` likeliest tokens of each row and their log-probabilities, best first; a row each per row of scores [n, V], or
    of `rows`.

    scores: logits, warped or not; -inf removes a token. `count` above V gives all of them. Costs the host read of both. Raises
    ValueError for scores that make no law (NaN, infinity).
    """
    tokens, log_probs = ranked(scores, count, rows)
    width = min(count, scores.shape[1])
    starts = range(0, len(tokens), width)
    return [tokens[at : at + width] for at in starts], [log_probs[at : at + width] for at in starts]


def ranked(
    scores: Tensor, count: int, rows: Sequence[int] | None = None, above: Sequence[float] | None = None
) -> tuple[list[int], list[float]]:
    """`likeliest`, one row behind the other. above: by row, what is added to its log-probabilities (which are at most 0)."""
    found = _natively(scores, count, rows, True, above)
    if found is not None:
        return found[0].tolist(), found[1].tolist()
    chosen = (scores if rows is None else scores[rows]).float()
    values, ids = greatest(chosen, count)
    over, totals = [0.0] * len(chosen) if above is None else above, chosen.logsumexp(-1).tolist()
    log_probs = [
        path + min(value - total, 0.0) for row, total, path in zip(values.tolist(), totals, over, strict=True) for value in row
    ]
    if any(total != total or total in (math.inf, -math.inf) for total in totals):
        raise ValueError(NO_LAW)
    return ids.flatten().tolist(), log_probs


def log_total(scores: Tensor, row: int) -> float:
    """The logarithm of the sum of the exponentials of a row of scores [n, V]: a score less this is a log-probability."""
    if type(scores) is Narrow and scores.totals is not None:
        return scores.totals[row]
    found = _natively(scores, 1, [row], True)
    return float(scores[row].float().logsumexp(-1)) if found is None else found[2][0]


def score_of(scores: Tensor, row: int, token: int) -> float:
    """One number of scores [n, V]."""
    few, ids = narrow_rows(scores)
    if ids is None:
        return float(scores[row, token])
    known = ids.numpy()
    place = int(known.searchsorted(token))
    return float(few.numpy().item(row, place)) if place < len(known) and known.item(place) == token else -math.inf


def _natively(
    scores: Tensor,
    count: int,
    rows: Sequence[int] | None,
    as_law: bool,
    above: Sequence[float] | None = None,
    names: Tensor | None = None,
) -> tuple[array[int], array[float], array[float]] | None:
    """Ids, their scores or log-probabilities, flat, and of a law the rows' totals; None where others have to: no float32 rows
    here, or numbers that make no answer."""
    if not build.loaded:
        return None
    memory = (scores.memory if type(scores) is Narrow else None) or memory_of(scores)
    if memory is None:
        return None
    address, ld, size, called = memory
    if called and count > size:
        return None
    if names is not None:
        called = names.data_ptr()
    chosen, over = None if rows is None else array("q", rows), None if above is None else array("d", above)
    num_rows, width = len(rows if rows is not None else scores if above is None else above), min(count, size)
    ids = _WHOLE * (num_rows * width)
    found, totals = (_DOUBLE if as_law else _FLOAT) * (num_rows * width), _FLOAT * (num_rows if as_law else 0)
    which, paths = chosen.buffer_info()[0] if chosen else 0, over.buffer_info()[0] if over else 0
    to, summed = found.buffer_info()[0], totals.buffer_info()[0] if as_law else 0
    by_value, by_law = (0, to) if as_law else (to, 0)
    at = ids.buffer_info()[0]
    words = (address, ld, size, which, called, paths, num_rows, width, at, by_value, by_law, summed, threads.count())
    asked = array("q", words)  # `Asked` in forward.cpp
    if not build.loaded[-1].sb_ranks(asked.buffer_info()[0]):
        return None
    if as_law and rows is None and type(scores) is Narrow and scores.rows is not None:
        scores.totals = totals
    return ids, found, totals


def memory_of(scores: Tensor) -> tuple[int, int, int, int] | None:
    """Address, numbers from row to row, numbers of a row, and address of what ids they are of (0: all, in order); None of rows
    that are not read natively."""
    few, ids = narrow_rows(scores)
    if not few.is_cpu or few.dtype != torch.float32 or few.stride(1) != 1:
        return None
    return few.data_ptr(), few.stride(0), few.shape[1], 0 if ids is None else ids.data_ptr()
