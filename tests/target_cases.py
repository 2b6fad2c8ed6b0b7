"""Targets, texts and references for the tests of what a target answers beside logits.

The reference is always transformers' own model over the plain sequence of ids, without a cache, with hooks where rows enter at
a later layer or skip one. Models are in double precision, so that rounding is far from what a fault changes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import tiny
import torch

import specbench.engine.session as session_module
from specbench.check.state import cache_error
from specbench.engine.cache import KVCache
from specbench.engine.model import Model
from specbench.engine.session import Session
from specbench.engine.tree import DraftTree, Verdict

LAYERS = 4
LAYERED = ("llama", "qwen3", "mistral", "gemma3")  # laid out as Llama: model.layers, model.norm, lm_head
PROMPT, PENDING = tiny.prompt(9), 7
PARENTS = [-1, -1, 0, 1, 0, 2, 2, 5]
NODES = tiny.prompt(len(PARENTS), seed=3)
PATH = (0, 2, 6)  # no leading run of rows: the cache must gather
# Riders on the root, on nodes and on riders; N + j is rider j.
N = len(NODES)
RIDER_PARENTS = [-1, N + 0, 2, N + 2, 6, 6]
RIDER_IDS = tiny.prompt(len(RIDER_PARENTS), seed=11)

MODELS: dict[str, Model] = {}


def model_of(architecture: str) -> Model:
    """Made once: sessions never change a model."""
    if architecture not in MODELS:
        MODELS[architecture] = tiny.model(architecture, layers=LAYERS, dtype=torch.float64)
    return MODELS[architecture]


def same(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


def begun(model: Model, taps: Sequence[int] = (), kind: type[Session] = Session) -> Session:
    """A session with the prompt fed and a pending token."""
    session = kind(model, taps)
    session.start(96)
    session.prefill(PROMPT)
    session.pending = PENDING
    return session


def nodes_to(node: int, parents: Sequence[int]) -> list[int]:
    path: list[int] = []
    while node >= 0:
        path.insert(0, node)
        node = parents[node]
    return path


def ids_to(node: int) -> list[int]:
    """The whole text down to a node, or, from N on, to a rider."""
    return [*PROMPT, PENDING, *([*NODES, *RIDER_IDS][i] for i in nodes_to(node, [*PARENTS, *RIDER_PARENTS]))]


def causal(rows: int) -> torch.Tensor:
    return torch.full((rows, rows), torch.finfo(torch.float64).min, dtype=torch.float64).triu_(1)[None, None]


def states_of(model: Model, ids: Sequence[int]) -> Any:
    with torch.inference_mode():
        return model.module(torch.tensor([list(ids)]), use_cache=False, output_hidden_states=True).hidden_states


@contextlib.contextmanager
def entering(model: Model, layer: int, rows: torch.Tensor) -> Iterator[None]:
    """The last rows of a forward are these when they enter the layer."""

    def enter(_: Any, arguments: Any, options: Any) -> Any:
        hidden = arguments[0].clone()
        hidden[0, -len(rows) :] = rows
        return (hidden, *arguments[1:]), options

    handle = model.module.model.layers[layer].register_forward_pre_hook(enter, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def skipping(model: Model, layers: Sequence[int], num_rows: int) -> Iterator[None]:
    """The last rows of a forward pass by these layers."""

    def skip(_: Any, arguments: Any, output: Any) -> Any:
        made = output[0] if isinstance(output, tuple) else output
        made = made.clone()
        made[0, -num_rows:] = arguments[0][0, -num_rows:]
        return (made, *output[1:]) if isinstance(output, tuple) else made

    handles = [model.module.model.layers[layer].register_forward_hook(skip) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_cache(session: Session, ids: Sequence[int]) -> None:
    """The session holds these ids, in every layer, and nothing else."""
    assert {layer.length for layer in session.cache.layers} == {len(ids)}, "layers of another length"
    assert cache_error(session, ids) < 1e-6, "not close: a cache that a fresh forward does not leave"


def commit(session: Session, tree: DraftTree, path: tuple[int, ...], extra: int = 11) -> list[int]:
    """Commit a path of the tree, and return everything that is fed then."""
    ids = [*PROMPT, PENDING, *(tree.tokens[node] for node in path)]
    session.commit(Verdict(path, (*ids[len(PROMPT) + 1 :], extra)))
    return ids


# -------------------------------------------------------------------------------------------------- faults of several files
def riders_on_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    real = session_module._with_riders

    def flat(tree: DraftTree) -> Any:
        parents, depths = real(tree)
        return [*parents[: 1 + len(tree.tokens)], *(0 for _ in range(len(tree.riders or ())))], depths

    monkeypatch.setattr(session_module, "_with_riders", flat)


def riders_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything of a forward is kept."""
    monkeypatch.setattr(KVCache, "keep_rows", lambda self, start, rows: None)


def nothing_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KVCache, "keep_rows", lambda self, start, rows: self.rollback(start + len(rows)))
