"""Lookahead: where the window's rows stand, what goes into the pool, and that the rows pay without ever being committed."""

from __future__ import annotations

import pytest
import tiny
import torch

from specbench.engine.model import Model
from specbench.engine.request import Outcome
from specbench.engine.sampling import SamplingLaw
from specbench.engine.session import Session
from specbench.engine.tree import DraftTree, Evidence, Feedback, Verdict
from specbench.method import Method
from specbench.methods.text.lookahead import Lookahead, LookaheadDraft


def begun(window: int = 3, ngram: int = 3, guesses: int = 2) -> LookaheadDraft:
    draft = LookaheadDraft(window, ngram, guesses)
    draft.law = SamplingLaw()
    around = tiny.runtime(tiny.model())
    draft.begin(tiny.request(around, [3, 4, 5, 3, 4, 6]), 7, Evidence(torch.zeros(1, 1), {}))
    return draft


def test_the_pool_begins_with_the_prompts_ngrams_and_drafts_them_as_a_tree() -> None:
    draft = begun()
    draft.pending = 3
    tree = draft.propose(10)
    assert (tree.tokens, tree.parents) == ([4, 6, 5], [-1, 0, 0]), "latest first, merged where they agree"
    assert draft.propose(1).tokens == [4]
    assert draft.propose(0).tokens == [] and draft.propose(0).riders is None
    draft.pending = 9
    assert draft.propose(10).tokens == []


def test_every_row_of_the_window_hangs_where_it_belongs() -> None:
    riders = begun(window=3, ngram=4).propose(10).riders
    assert riders is not None
    paths: list[tuple[int, ...]] = []
    for row, parent in enumerate(riders.parents):
        paths.append((*(paths[parent] if parent >= 0 else ()), row))
    # Row l * window + j sees level 0 up to column j, then its own column; so it stands 1 + j + l behind the pending token.
    assert paths[:3] == [(0,), (0, 1), (0, 1, 2)]
    assert paths[4] == (0, 1, 4) and paths[8] == (0, 1, 2, 5, 8)
    assert [len(path) for path in paths] == [1, 2, 3, 2, 3, 4, 3, 4, 5]


@pytest.mark.parametrize("committed", [1, 2, 3])
def test_the_window_keeps_its_places(committed: int) -> None:
    draft = begun(window=4, ngram=3, guesses=9)
    old = [list(level) for level in draft.levels]
    logits = torch.full((8, 64), -9.0)
    logits[range(8), range(40, 48)] = 0.0  # the deepest level answers 44, 45, 46, 47
    tree = DraftTree([1, 2])
    verdict = Verdict(tuple(range(committed - 1)), tuple(range(50, 50 + committed)))
    draft.observe(Feedback(tree, Evidence(torch.zeros(3, 64), {}, logits), verdict))
    moved = committed - 1
    assert [level[: 4 - moved] for level in draft.levels] == [old[1][moved:], [44, 45, 46, 47][moved:]]
    for column in range(4):
        assert (old[1][column], 44 + column) in draft.pool[old[0][column]]


def decoded(method: Method, law: SamplingLaw | None = None) -> Outcome:
    module = tiny.module("llama", seed=3)
    around = tiny.runtime(Model.wrap(module), law=law, max_new_tokens=48)
    return tiny.decode(method, around, tiny.prompt(12))


def test_rows_are_counted_and_never_committed() -> None:
    outcome, plain = decoded(Lookahead(window=4, ngram=3)), decoded(Method())
    assert outcome.output_ids == plain.output_ids
    with_window = [r for r in outcome.rounds if r.num_rider_rows]
    assert with_window and all(r.num_rider_rows == 8 for r in with_window)
    assert all(r.num_target_rows == 1 + r.num_drafted + r.num_rider_rows for r in outcome.rounds)
    sampled = SamplingLaw(1.0, top_k=3)
    assert decoded(Lookahead(), sampled).output_ids == decoded(Method(), sampled).output_ids


def test_the_targets_guesses_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """On text that repeats itself the window finds what comes; the twin answers nonsense and finds nothing."""
    repeating = tiny.noisy_copy(tiny.module("llama", seed=3), 0.0)
    repeating.lm_head.weight[:32] -= 0.5  # fewer tokens to choose from: its greedy text falls into a loop
    around = tiny.runtime(Model.wrap(repeating), max_new_tokens=96)
    accepted = sum(r.num_accepted for r in tiny.decode(Lookahead(), around, tiny.prompt(12)).rounds)
    forward = Session.forward

    def nonsense(self: Session, tree: DraftTree) -> Evidence:
        evidence = forward(self, tree)
        if evidence.riders is not None:
            evidence.riders = -evidence.riders
        return evidence

    monkeypatch.setattr(Session, "forward", nonsense)
    outcome = tiny.decode(Lookahead(), around, tiny.prompt(12))
    assert sum(r.num_accepted for r in outcome.rounds) < accepted
