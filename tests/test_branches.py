"""Branching sessions of a draft model: each branch sees the trunk and its own path; twins of the assertions at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import tiny
import torch
from target_cases import (
    PROMPT,
    check_cache,
    model_of,
    nodes_to,
    nothing_gathered,
    same,
)

from specbench.engine.branching import BranchingSession


# ---------------------------------------------------------------------------------------------------------------- branches
def check_branches(architecture: str, levels: Sequence[Sequence[int]], path: Sequence[int]) -> None:
    """A tree grown level by level, its rows numbered as they come; then a path of it is kept, and another tree grown on that.

    levels: the parents of each level's rows.
    """
    model = model_of(architecture)
    session = BranchingSession(model)
    session.start(128)
    text = list(PROMPT)
    session.feed(text)
    for turn in range(2):
        session.branch()
        parents = [parent for level in levels for parent in level]
        tokens, grown = tiny.prompt(len(parents), seed=40 + turn), 0
        for level in levels:
            rows = range(grown, grown + len(level))
            logits = session.grow([tokens[row] for row in rows], level)
            for row in rows:
                ids = [*text, *(tokens[i] for i in nodes_to(row, parents))]
                same(logits[row - grown], tiny.plain_forward(model.module, ids)[-1])
            grown += len(level)
        session.keep(path)
        text += [tokens[row] for row in path]
        assert session.length == len(text)
        same(session.feed([5])[-1], tiny.plain_forward(model.module, [*text, 5])[-1])
        session.rollback(len(text))
    check_cache(session, text)


CHAIN = [[-1], *([row] for row in range(8))]  # deeper than a window
BUSHY = [[-1, -1, -1], [0, 0, 2], [3, 5, 5], [8]]
WIDE = [[-1] * tiny.WINDOW * 2, list(range(tiny.WINDOW * 2))]  # more rows than a window is long, two deep


@pytest.mark.parametrize(
    ("levels", "path"), [(CHAIN, (0, 1, 2, 3)), (BUSHY, (2, 5, 8, 9)), (WIDE, (7, 19)), (BUSHY, ())], ids=str
)
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_branches_see_the_trunk_and_their_own_path(
    architecture: str, levels: Sequence[Sequence[int]], path: Sequence[int]
) -> None:
    check_branches(architecture, levels, path)


def test_a_rollback_forgets_the_branches() -> None:
    model = model_of("llama")
    session = BranchingSession(model)
    session.start(64)
    session.feed(PROMPT)
    session.branch()
    session.grow([1, 2], [-1, -1])
    session.rollback(5)
    same(session.grow([3, 4], [-1, -1])[1], tiny.plain_forward(model.module, [*PROMPT[:5], 4])[-1])
    with pytest.raises(AssertionError, match="earlier call"):
        session.grow([1, 2], [0, 3])


# ------------------------------------------------------------------------------------------------------------------- twins
def branches_see_all(monkeypatch: pytest.MonkeyPatch) -> None:
    real = BranchingSession._mask

    def mask(self: BranchingSession, own: torch.Tensor, positions: torch.Tensor) -> Any:
        return real(self, torch.zeros_like(own), positions)

    monkeypatch.setattr(BranchingSession, "_mask", mask)


def window_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    real = BranchingSession._mask

    def mask(self: BranchingSession, own: torch.Tensor, positions: torch.Tensor) -> Any:
        depths, rows = self._row_depths, len(own)
        self._row_depths = list(range(len(depths)))
        made = real(self, own, self.trunk + torch.arange(len(depths) - rows, len(depths)))
        self._row_depths = depths
        return made

    monkeypatch.setattr(BranchingSession, "_mask", mask)


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        (branches_see_all, lambda: check_branches("llama", BUSHY, (2, 5, 8, 9))),
        (nothing_gathered, lambda: check_branches("llama", BUSHY, (2, 5, 8, 9))),
        (window_by_row, lambda: check_branches("mistral", WIDE, (7, 19))),
        (window_by_row, lambda: check_branches("gemma3", WIDE, (7, 19))),
    ],
)
def test_these_assertions_catch(
    fault: Callable[[pytest.MonkeyPatch], None], check: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)
    with pytest.raises(AssertionError, match=r"not close|another length|left something"):
        check()
