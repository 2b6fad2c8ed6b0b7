"""Heads for the tiny pair of the checks, trained for a moment on the tiny target's own text: for any method with a class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from specbench.check.tiny import VOCAB_SIZE
from specbench.config.specs import PairSpec
from specbench.method import create_method
from specbench.pair.load import load_model
from specbench.parts.drafts.datastore import Datastore
from specbench.parts.heads.base import Heads, TargetParts, build_heads
from specbench.parts.heads.files import target_hash
from specbench.parts.heads.stored import save_heads

STEPS, LEARNING_RATE = 150, 3e-3
_ROWS, _PROMPT, _LENGTH = 48, 4, 28  # texts of the target, half of them greedy


def with_tiny_heads(node: Mapping[str, Any], pair: PairSpec, folder: Path, allow_targets: Sequence[str] = ()) -> dict[str, Any]:
    """The method's node with `heads` naming tiny ones for the pair's target, made below `folder`.

    A method that reads a datastore gets one of the same text. Without either, and where the node names them already, it is
    kept.
    """
    made = type(create_method(node, allow_targets))
    if made.reads_datastore and node.get("datastore") is None:
        out = folder / "datastore"
        if not out.exists():
            ids = _text(load_model(pair.target, pair.vocab_size).module)
            Datastore.build(ids.flatten().tolist(), -1, VOCAB_SIZE).save(out, {})
        return {**node, "datastore": str(out)}
    cls = made.heads_class
    if cls is None or node.get("heads") is not None:
        return dict(node)
    out = folder / f"heads_{cls.family}"
    if not out.exists():
        make_tiny_heads(cls, pair, out)
    return {**node, "heads": str(out)}


def make_tiny_heads(cls: type[Heads], pair: PairSpec, out: Path, steps: int = STEPS) -> None:
    """Build, train and calibrate heads of a family on the pair's target, and save them; the same weights every time."""
    from specbench.train.calibrate import calibrate

    module = load_model(pair.target, pair.vocab_size).module
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        heads = build_heads(cls, TargetParts.of(module, target_hash(pair.target)), {})
        ids = _text(module)
        with torch.no_grad():
            hidden = module(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states[-1]
        optimizer = torch.optim.Adam(heads.parameters(), lr=LEARNING_RATE)
        heads.train()
        for _ in range(steps):
            loss = heads.loss(ids, hidden)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    heads.calibration = calibrate(heads, module, ids[: _ROWS // 2], _PROMPT)
    save_heads(heads, out)


@torch.no_grad()
def _text(module: Any) -> torch.Tensor:
    """int64 (rows, length): the target's text after random prompts, greedy in the first half, sampled in the second."""
    ids = torch.randint(VOCAB_SIZE, (_ROWS, _PROMPT))
    while ids.shape[1] < _LENGTH:
        logits = module(input_ids=ids, use_cache=False).logits[:, -1]
        drawn = torch.multinomial(logits.softmax(-1), 1)[:, 0]
        greedy = torch.arange(_ROWS) < _ROWS // 2
        ids = torch.cat([ids, torch.where(greedy, logits.argmax(-1), drawn)[:, None]], dim=1)
    return ids
