"""A target that says a given text, for drafters that look at text: rounds without a model, some thousand a second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from specbench.engine.request import Request
from specbench.engine.tree import Evidence, Feedback
from specbench.method import Method
from specbench.parts.rules.chain import match


def request(prompt: Sequence[int], length: int) -> Request:
    return Request("told", 0, tuple(prompt), length, frozenset(), 0)


def rounds(method: Method, prompt: Sequence[int], output: Sequence[int], logits: Any = None) -> list[int]:
    """Tokens emitted by each round until `output` is told. logits: of (tokens so far, tree) [1 + nodes, vocab], for drafters
    that learn from them."""
    drafter, emitted = method.drafter, []
    told = [output[0]]
    drafter.announce(request(prompt, len(output)))
    drafter.begin(request(prompt, len(output)), output[0], Evidence(torch.zeros(1, 1), {}))
    while len(told) < len(output):
        tree = drafter.propose(len(output) - len(told) - 1)
        depths = [0, *tree.depths()]
        verdict = match(tree, [output[min(len(told) + depth, len(output) - 1)] for depth in depths])
        rows = logits([*prompt, *told], tree) if logits else torch.zeros(1 + len(tree.tokens), 1)
        drafter.observe(Feedback(tree, Evidence(rows, {}), verdict))
        told += verdict.tokens
        emitted.append(len(verdict.tokens))
    assert told == list(output)
    return emitted
