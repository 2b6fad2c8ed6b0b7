"""Trees that follow the machine: what is taken pays, what was not drafted is learned about, and costs decide."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import tiny
import told_text
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from specbench.engine.model import Model
from specbench.method import Method
from specbench.methods.text.suffix import Suffix, SuffixDraft
from specbench.methods.text.token_recycling import RecycledDraft, TokenRecycling
from specbench.parts.shapes.likeliest import Likeliest, grow_likeliest
from specbench.parts.shapes.static import best_num_nodes
from specbench.parts.shapes.worth import Size, Worth

FREE, DEAR = [1.0 + 0.001 * nodes for nodes in range(25)], [1.0 + 0.4 * nodes for nodes in range(25)]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.floats(0.0, 1.0), min_size=1, max_size=12).map(lambda found: sorted(found, reverse=True)),
    st.lists(st.floats(0.0, 1.0), min_size=13, max_size=13),
)
def test_growing_ends_when_nothing_further_can_pay_and_never_before(chances: list[float], steps: list[float]) -> None:
    row_seconds = [1.0 + sum(steps[:nodes]) for nodes in range(13)]  # any cost that never falls: flat parts, steps
    size = Size(row_seconds)
    for chance in chances:
        if not size.goes_on(chance):
            break
    assert size.num_nodes == best_num_nodes(chances, row_seconds, 0.0)


def weigh_once(worth: Worth, chance_of: dict[int, str], truth: list[int]) -> Likeliest:
    """A root with children of given kinds, prior 0.5 each, and what the target then says."""

    def children(place: tuple[int, str | None]) -> list[tuple[int, float, tuple[int, str]]]:
        return [(token, worth.chance(kind, 0.5), (token, kind)) for token, kind in chance_of.items()] if place[0] < 0 else []

    tree, _ = worth.weigh(partial(grow_likeliest, (-1, None), children, worth.max_nodes, 4, 0.0, True))
    worth.learn(truth)
    return tree


@pytest.mark.parametrize("costs", [FREE, DEAR])
def test_a_kind_is_worth_what_the_target_said_whether_it_was_drafted_or_not(costs: list[float]) -> None:
    worth, draw = Worth(24), random.Random(0)
    worth.row_seconds = [1.0 + 2.0 * nodes for nodes in range(25)]  # so dear that nothing is ever drafted
    for _ in range(600):
        assert not weigh_once(worth, {7: "often", 8: "seldom"}, [7 if draw.random() < 0.8 else 9]).tokens
    assert worth.chance("often", 0.5) == pytest.approx(0.8, abs=0.08)
    worth.row_seconds = costs
    tree = weigh_once(worth, {8: "seldom", 7: "often"}, [7])
    assert tree.tokens[0] == 7 and (len(tree.tokens) == 2) == (costs is FREE)
    worth.clear()
    assert worth.chance("often", 0.5) == 0.5


def seconds(method: Method, requests: list[tuple[list[int], list[int]]], costs: list[float]) -> float:
    """Per token, of rounds that cost their rows."""
    drafter = method.drafter
    assert isinstance(drafter, SuffixDraft)
    drafter.branches, spent = True, 0.0
    if drafter.worth is not None:
        drafter.worth.row_seconds = costs
    propose = drafter.propose

    def counted(depth: int):  # type: ignore[no-untyped-def]
        nonlocal spent
        tree = propose(depth)
        spent += costs[len(tree.tokens)]
        return tree

    drafter.propose = counted  # type: ignore[method-assign]
    emitted = sum(sum(told_text.rounds(method, *one)) for one in requests)
    return spent / emitted


def half_repeated(count: int = 12) -> list[tuple[list[int], list[int]]]:
    """Sentences out of a few words: what follows a word stood before, and is right about every other time."""
    draw = random.Random(3)
    follow = {word: [draw.randrange(1, 30) for _ in range(3)] for word in range(30)}
    found = []
    for _ in range(count):
        text = [1]
        for _ in range(160):
            text.append(draw.choice(follow[text[-1]]) if draw.random() < 0.8 else draw.randrange(1, 30))
        found.append((text[:80], text[80:]))
    return found


def test_where_rows_are_dear_few_are_drafted_and_where_they_are_free_many() -> None:
    texts = half_repeated()
    dear, papers_dear = (seconds(Suffix(num_nodes=nodes), texts, DEAR) for nodes in ("auto", 24))
    assert dear < 1.02 < 1.3 < papers_dear, (dear, papers_dear)  # a plain round is 1.0 a token
    free, papers_free = (seconds(Suffix(num_nodes=nodes), texts, FREE) for nodes in ("auto", 24))
    assert free < papers_free < 0.9, (free, papers_free)


def test_the_recycled_tree_follows_the_costs_and_is_never_more_than_it_said() -> None:
    drafter = TokenRecycling().drafter
    assert isinstance(drafter, RecycledDraft) and drafter.worth is not None
    drafter.branches, drafter.pending = True, 5
    drafter.successors = np.zeros((64, 8), dtype=np.int32)
    drafter.successors[:] = [[1, 2, 3, 4, 5, 6, 7, 8]] * 64
    drafter.read = drafter.successors.reshape(-1).data
    sizes = []
    for costs in (FREE, DEAR):
        drafter.worth.row_seconds = [costs[0] + (costs[1] - costs[0]) * nodes for nodes in range(1 + drafter.max_nodes)]
        tree = drafter.propose(6)
        assert len(tree.tokens) <= drafter.max_nodes and tree.depth <= 6
        sizes.append(len(tree.tokens))
    assert sizes[0] == drafter.max_nodes and 1 <= sizes[1] <= 3
    assert drafter.propose(0).tokens == []


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_what_is_timed_are_programs_and_nothing_else_is_made(architecture: str) -> None:
    config = tiny.config(architecture)
    if architecture == "gpt2":
        config.n_positions = 30  # positions that a model has learned; a program's rows may be more than these
    target = replace(Model.wrap(AutoModelForCausalLM.from_config(config).eval()), fixed="as_written")
    method = Suffix()
    tiny.opened(method, tiny.runtime(target, max_new_tokens=8))
    assert isinstance(method.drafter, SuffixDraft) and (worth := method.drafter.worth) is not None
    assert sorted(worth.target._programs) == sorted(worth.measured) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 25]


def test_a_round_that_was_never_ended_is_not_judged_by_the_next_text() -> None:
    worth = Worth(24)
    worth.row_seconds = FREE
    worth.weigh(lambda goes_on: Likeliest([7], [-1], [0.5], [(7, "kind")]))
    worth.begin()
    worth.learn([8])
    assert worth.chance("kind", 0.5) == 0.5
