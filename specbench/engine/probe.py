"""A probe of a model's cache: feed, roll back, feed again, branch, and compare with one fresh forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from specbench.config.options import ConfigError
from specbench.engine.model import Model
from specbench.engine.session import Session
from specbench.engine.target import open_session, open_target
from specbench.engine.tree import DraftTree, Verdict


def probe_rollback(model: Model, role: str, name: str, ids: Sequence[int] | None = None) -> None:
    """Feed, roll back, feed again, and compare with one fresh forward: the cache must be exact for this very architecture.

    Raises ConfigError when the logits differ by more than the dtype's rounding explains, or when the model does not take such a
    cache, mask or positions at all. Chains exact but trees not (positions counted by rows, as ALiBi in MPT does): the model
    may run, and `model.tree_refusal` says why no tree may be fed to it.
    """
    ids = list(ids) if ids is not None else [(37 * i + 11) % model.vocab_size for i in range(12)]
    try:
        with torch.inference_mode():
            output = model.module(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
        fresh = output.logits[0, :, : model.vocab_size]
        scale = float(_numbers(fresh).abs().max()) or 1.0
        tolerance = {torch.float32: 1e-3, torch.float64: 1e-6}.get(model.dtype, 6e-2) * scale
        difference = _chain_error(model, ids, fresh)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever an architecture stumbles over that takes other masks or positions
        reason = f"a probe of its cache failed with {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ConfigError(f"pair.{role}", name, f"refused: {reason}") from error
    if not difference <= tolerance:
        raise ConfigError(
            f"pair.{role}",
            name,
            f"refused: its cache cannot be rolled back exactly (logits off by {difference:.3g} in a probe)",
        )
    if model.tree_refusal is None:
        difference = _tree_error(model, ids, fresh)
        if not difference <= tolerance:
            model.tree_refusal = (
                f"its positions do not follow the branches of a tree (logits off by {difference:.3g} in a probe)"
            )


def _chain_error(model: Model, ids: list[int], fresh: Any) -> float:
    """Largest error of the logits after a rollback; fresh [n, vocab] belongs to ids [n], n >= 12."""
    session = open_target(model)
    session.start(len(ids) + 4)
    if not isinstance(session, Session):  # another backend: a round in which nothing stands
        session.feed(ids[:6])
        session.pending = ids[6]
        session.forward(DraftTree(ids[8:11]))
        session.commit(Verdict((), (ids[7],)))
        return float((_numbers(session.forward(DraftTree(ids[8:])).logits) - _numbers(fresh[7:])).abs().max())
    session.feed(ids[:6])
    session.feed(ids[8:11])  # wrong tokens ...
    session.rollback(6)  # ... forgotten
    return float((_numbers(session.feed(ids[6:])) - _numbers(fresh[6:])).abs().max())


def _tree_error(model: Model, ids: list[int], fresh: Any) -> float:
    """Largest error of the logits on a branch beside a wrong sibling, and after that branch alone was kept."""
    session = open_session(model)
    session.start(len(ids) + 4)
    session.feed(ids[:6])
    wrong = (ids[7] + 1) % model.vocab_size
    branch = session.feed([ids[6], wrong, ids[7], ids[8]], parents=[-1, 0, 0, 2])[[0, 2, 3]]
    session.cache.keep_rows(6, [0, 2, 3])
    after = session.feed(ids[9:])
    return max(
        float((_numbers(ours) - _numbers(theirs)).abs().max()) for ours, theirs in ((branch, fresh[6:9]), (after, fresh[9:]))
    )


def _numbers(logits: torch.Tensor) -> torch.Tensor:
    """Logits in float32 with 0 for ids that a reduced LM head says nothing of, so that they can be subtracted."""
    return logits.float().masked_fill(logits == float("-inf"), 0.0)
