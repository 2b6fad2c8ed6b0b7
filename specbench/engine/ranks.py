"""The greatest scores of rows and what they are as probabilities: one place for drafts that rank a vocabulary.

Where a model of this process runs in `backends.native` the rows are read there, each once for its greatest and once for the sum
of its exponentials; elsewhere torch and numpy do the same.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from specbench.engine import threads
from specbench.engine.backends.native import build

NO_LAW = "the logits hold NaN or infinity: no token follows from them (broken weights, or a number format that overflowed)"
_SPAN, _FEW = 16, 1 << 16  # of `greatest`: ids in a column, and numbers that are not worth a second look


def greatest(scores: Tensor, count: int, rows: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
    """The `count` greatest of each row of scores [n, V], best first, and their ids; of `rows` alone, in their order, if given.

    As topk, NaN being the greatest of all; of equals any, and natively the smaller id. Elsewhere on the CPU every (V / 16)-th
    id is one column: the greatest are in the columns of the greatest maxima, or behind the last column. A fifth of topk's time
    on 49,152 ids; those maxima are taken of all rows, for a copy of some costs more.
    """
    vocab_size = scores.shape[1]
    if (found := _natively(scores, count, rows, False)) is not None:
        values, ids = (np.frombuffer(part, part.typecode).reshape(-1, min(count, vocab_size)) for part in found[:2])
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


def likeliest(scores: Tensor, count: int, rows: Sequence[int] | None = None) -> tuple[list[list[int]], list[list[float]]]:
    """The `count` likeliest tokens of each row and their log-probabilities, best first; a row each per row of scores [n, V], or
    of `rows`.

    scores: logits, warped or not; -inf removes a token. `count` above V gives all of them. Costs the host read of both. Raises
    ValueError for scores that make no law (NaN, infinity).
    """
    found = _natively(scores, count, rows, True)
    if found is None:
        chosen = (scores if rows is None else scores[rows]).float()
        values, ids = greatest(chosen, count)
        tokens, ranked, totals = ids.tolist(), values.tolist(), chosen.logsumexp(-1).tolist()
    else:
        width = min(count, scores.shape[1])
        starts = range(0, len(found[0]), width)
        tokens = [found[1][at : at + width].tolist() for at in starts]
        ranked = [found[0][at : at + width].tolist() for at in starts]
        totals = found[2].tolist()
    log_probs = [[value - total for value in row] for row, total in zip(ranked, totals, strict=True)]
    if any(row[0] != row[0] for row in log_probs):
        raise ValueError(NO_LAW)
    return tokens, log_probs


def log_totals(scores: Tensor, rows: Sequence[int]) -> list[float]:
    """The logarithm of the sum of the exponentials of rows of scores [n, V]: a score less this is a log-probability."""
    found = _natively(scores, 1, rows, True)
    totals: list[float] = scores[rows].float().logsumexp(-1).tolist() if found is None else found[2].tolist()
    return totals


def _natively(
    scores: Tensor, count: int, rows: Sequence[int] | None, totals: bool
) -> tuple[array[float], array[int], array[float]] | None:
    """Values, ids and logarithms of sums, flat; None where others have to: no float32 rows here, or a NaN among them."""
    if not build.loaded or not scores.is_cpu or scores.dtype != torch.float32 or scores.stride(1) != 1:
        return None
    vocab_size = scores.shape[1]
    asked, width = None if rows is None else array("q", rows), min(count, vocab_size)
    num_rows = len(scores) if asked is None else len(asked)
    values, ids, sums = (
        array("f", bytes(4 * num_rows * width)),
        array("q", bytes(8 * num_rows * width)),
        array("f", bytes(4 * num_rows)),
    )
    whole = build.loaded[-1].sb_ranks(
        scores.data_ptr(),
        scores.stride(0),
        vocab_size,
        None if asked is None else asked.buffer_info()[0],
        num_rows,
        width,
        values.buffer_info()[0],
        ids.buffer_info()[0],
        sums.buffer_info()[0] if totals else None,
        threads.count(),
    )
    return (values, ids, sums) if whole else None
