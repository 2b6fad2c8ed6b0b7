"""The native backend's own tokens: what a forward finds on its way is what its logits say, in verification and in a chain."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch

from specbench.engine import threads
from specbench.engine.model import Model
from specbench.engine.reduced import ReducedHead
from specbench.engine.sampling import SamplingLaw
from specbench.engine.target import open_session, open_target
from specbench.engine.tree import DraftTree, Evidence
from specbench.parts.rules.rule import RULES

GREEDY, MATCH = SamplingLaw(), RULES["greedy_match"]
VOCAB = 75  # no sixteen divides it: the rows are padded, and what stands there is no token
TREE = [-1, -1, 0, 0, 1, 2, 2]


def native(module: Any = None) -> Model:
    return Model.wrap(tiny.module("llama", vocab_size=VOCAB) if module is None else module).run_natively()


def begun(model: Model, **options: Any) -> Any:
    session = open_target(model, **options)
    session.start(200)
    session.pending = int(session.prefill(tiny.prompt(9, vocab_size=VOCAB)).logits.argmax())
    return session


def with_head(change: Any) -> Model:
    module = copy.deepcopy(tiny.module("llama", vocab_size=VOCAB))
    with torch.no_grad():
        change(module.lm_head.weight)
    return native(module)


@pytest.mark.parametrize("count", [1, 2])
def test_a_greedy_targets_own_tokens_are_those_of_its_logits(count: int) -> None:
    session, chain = begun(native()), []
    threads.use(count)
    try:
        for _ in range(4):  # what it says is drafted in the next turn, then a wrong token
            mark = session.mark()
            evidence = session.forward_and_choose(DraftTree(chain), GREEDY, 1, 0)
            assert evidence.own is not None
            assert evidence.own.tokens == evidence.logits.argmax(-1).tolist() and evidence.own.agreed == len(chain)
            session.restore(mark)
            chain = [*chain, evidence.own.tokens[-1]]
        chain[1] = (chain[1] + 1) % VOCAB
        assert session.forward_and_choose(DraftTree(chain), GREEDY, 1, 0).own.agreed == 1
        drafts = DraftTree(tiny.prompt(len(TREE), 3, VOCAB), TREE)
        evidence = MATCH.ask(session, drafts, GREEDY, 1, 0)
        assert evidence.own.tokens == evidence.logits.argmax(-1).tolist()
    finally:
        threads.use(1)
    assert session.forward_and_choose(DraftTree([1]), SamplingLaw(0.7), 1, 0).own is None


def test_a_tree_is_judged_by_them() -> None:
    """The likeliest path is found and kept; the twin, whose tokens are another row's, keeps another."""
    session = begun(native())
    first, second = (evidence := session.forward_and_choose(DraftTree([]), GREEDY, 1, 0)).own.tokens[0], 5
    session.rollback(session.length - 1)
    drafts = DraftTree([(first + 1) % VOCAB, first, second], [-1, -1, 1])
    evidence = MATCH.ask(session, drafts, GREEDY, 1, 0)
    verdict = MATCH.judge(drafts, evidence, GREEDY, 1, 0, None)
    assert verdict == MATCH.judge(drafts, replace(evidence, own=None), GREEDY, 1, 0, None)
    assert verdict.path[0] == 1 and verdict.tokens[0] == first
    wrong = replace(evidence, own=replace(evidence.own, tokens=[(first + 1) % VOCAB, *evidence.own.tokens[1:]]))
    assert MATCH.judge(drafts, wrong, GREEDY, 1, 0, None).path == (0,)


def test_of_equals_the_smaller_id_is_taken() -> None:
    """Every logit stands twice, sixteen and more apart: the argmax is below the repetition."""

    def twice(weight: torch.Tensor) -> None:
        weight[37:74] = weight[:37].clone()

    evidence = begun(with_head(twice)).forward_and_choose(DraftTree(tiny.prompt(20, 1, VOCAB)), GREEDY, 1, 0)
    assert evidence.own.tokens == evidence.logits.numpy().argmax(-1).tolist()
    assert max(token for token in evidence.own.tokens if token != 74) < 37


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_rows_that_make_no_law_have_none(odd: float) -> None:
    """Whoever judges or drafts says so; a single number of one row is enough."""

    def spoil(weight: torch.Tensor) -> None:
        weight[70, 3] = odd

    session = begun(with_head(spoil))
    evidence = MATCH.ask(session, DraftTree([1, 2]), GREEDY, 0, 0)
    assert evidence.own is None
    with pytest.raises(ValueError, match="no token follows"):
        MATCH.judge(DraftTree([1, 2]), evidence, GREEDY, 0, 0, None)
    with pytest.raises(ValueError, match="no token follows"):
        session.chain([1], 3, GREEDY, 0, 0)


def test_who_answers_in_the_models_place_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    session, real = begun(native()), Model.answer
    monkeypatch.setattr(Model, "answer", lambda *given: -real(*given))
    evidence = session.forward_and_choose(DraftTree([1]), GREEDY, 1, 0)
    assert evidence.own is None
    assert MATCH.judge(DraftTree([1]), evidence, GREEDY, 0, 0, None).extra == int(evidence.logits[0].argmax())

    class Spoken(Model):
        def answer(self, logits: torch.Tensor, past: int, rows: int) -> torch.Tensor:
            return -logits

    assert "chain" in session.can and "chain" not in open_session(Spoken(**vars(session.model))).can


# ----------------------------------------------------------------------------------------------------------------- a chain
def by_hand(session: Any, ids: list[int], length: int) -> list[int]:
    found: list[int] = []
    for _ in range(length):
        found.append(GREEDY.choose(session.feed(found[-1:] or ids, last_only=True), [0], 0)[0])
    return found


def reduced() -> Model:
    module = copy.deepcopy(tiny.module("llama", vocab_size=VOCAB))
    module.lm_head = ReducedHead.of(module.lm_head, [3, 9, 14, 21, 30, 33, 50, 61, 74])
    return native(module)


@pytest.mark.parametrize("make", [native, reduced])
@pytest.mark.parametrize("count", [1, 2])
def test_a_chain_says_what_feeding_it_token_by_token_says(make: Any, count: int) -> None:
    """Behind several rows and behind one, after a tree whose rows were not moved yet; the cache holds the same afterwards."""
    model, prompt = make(), tiny.prompt(30, 1, VOCAB)
    ours, theirs = begun(model), begun(model)
    for session in (ours, theirs):
        session.forward(DraftTree(prompt[: len(TREE)], TREE))
        session.cache.keep_rows(session.length - 1 - len(TREE), [0, 2, 5])
    threads.use(count)
    try:
        assert ours.chain([4, 7, 1], 6, GREEDY, 1, 0) == by_hand(theirs, [4, 7, 1], 6)
        assert ours.length == theirs.length
        assert ours.chain([2], 1, GREEDY, 1, 0) == by_hand(theirs, [2], 1)
    finally:
        threads.use(1)
    for mine, other in zip(ours.cache.layers, theirs.cache.layers, strict=True):
        assert torch.equal(mine.keys, other.keys) and torch.equal(mine.values, other.values)
    assert torch.equal(ours.feed([8, 6]), theirs.feed([8, 6]))
    ours.rollback(12)
    assert ours.chain([4, 7, 1], 6, GREEDY, 1, 0) != theirs.chain([4, 7, 1], 6, GREEDY, 1, 0)  # the twin: another text before


def test_what_a_chain_leaves_to_others() -> None:
    session = begun(native())
    assert session.chain([1], 2, SamplingLaw(0.7), 1, 0) is None
    assert begun(native(), taps=(-1,)).chain([1], 2, GREEDY, 1, 0) is None
    with pytest.raises(AssertionError, match="cache of"):
        session.chain([1], 500, GREEDY, 1, 0)
    assert isinstance(session.forward(DraftTree([])), Evidence)
