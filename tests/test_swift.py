"""SWIFT's search for the layers to skip: the set it ends with is no worse than the one it began with, and run.json is told."""

from __future__ import annotations

from typing import Any

import tiny
import torch

from specbench.engine.session import Session
from specbench.method import Method
from specbench.methods.layers.swift import SkipDraft, Swift


def matchness(model: Any, skipped: tuple[int, ...], texts: list[list[int]]) -> float:
    """Share of positions on which the target without these layers says what it says with them, on whole texts."""
    right = total = 0
    for ids in texts:
        session = Session(model)
        session.start(len(ids))
        truth = session.feed(ids).argmax(-1)
        session.start(len(ids))
        said = session.fork(skipped).feed(ids).argmax(-1)
        right, total = right + int((said == truth).sum()), total + len(ids)
    return right / total


def test_the_search_does_not_lower_matchness() -> None:
    """One inner layer does next to nothing and is not in the set begun with: skipping it is better, and it is found."""
    module = tiny.module(layers=6, seed=2)
    layer = module.model.layers[4]
    with torch.no_grad():
        for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
            weight *= 0.02
    model = tiny.Model.wrap(module)
    method: Method = Swift(draft_length=3, skip_ratio=0.25, window=24, enough=0.99, stop="fixed")
    around = tiny.runtime(model, None, None, 48)
    tiny.opened(method, around)
    drafter = method.drafter
    assert isinstance(drafter, SkipDraft)
    begun, texts = drafter.skipped, []
    for seed in range(3):
        request = tiny.request(around, tiny.prompt(6, seed), sample_id=str(seed))
        texts.append([*request.prompt_ids, *method.decode(request).output_ids])
    first, last = (matchness(model, skipped, texts) for skipped in (begun, drafter.skipped))
    facts: dict[str, Any] = method.facts()
    assert 4 not in begun and drafter.skipped == (4,) and last > first + 0.1, (begun, drafter.skipped, first, last)
    assert 1 <= facts["gains"] <= facts["windows"] and facts["skipped_layers"] == "4" and facts["first_matchness"] > first
    method.reset()
    assert drafter.skipped == begun and method.facts()["windows"] == 0, "a pass begins with nothing"
