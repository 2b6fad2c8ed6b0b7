"""Static trees: the greedy rule against brute force over all trees, and the size that time allows."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from specbench.engine.tree import DraftTree
from specbench.parts.shapes.static import (
    best_num_nodes,
    build_static_tree,
    choose_num_nodes,
    expected_accepted_length,
    fastest_tree,
    node_probabilities,
    parents_of,
    seconds_of_rows,
)

Node = tuple[int, ...]


def all_nodes(accuracies: list[list[float]]) -> list[Node]:
    """Every node that the heads could propose."""
    sizes = [range(len(head)) for head in accuracies]
    return [node for depth in range(1, len(sizes) + 1) for node in itertools.product(*sizes[:depth])]


def all_trees(accuracies: list[list[float]], num_nodes: int) -> list[tuple[Node, ...]]:
    """Every ancestor-closed set of that many nodes."""
    return [
        nodes
        for nodes in itertools.combinations(all_nodes(accuracies), num_nodes)
        if all(len(node) == 1 or node[:-1] in nodes for node in nodes)
    ]


def random_accuracies(draw: random.Random, depths: list[int]) -> list[list[float]]:
    heads = []
    for size in depths:
        parts = [draw.random() for _ in range(size + 1)]  # the last one: that none of the candidates is right
        heads.append([part / sum(parts) for part in parts[:size]])
    return heads


def accepted_by_walking(accuracies: list[list[float]], nodes: list[Node]) -> float:
    """Expected accepted length from its definition: which candidate of each head is right, and how far the tree follows."""
    held, expected = set(nodes), 0.0
    outcomes = [[*enumerate(head), (-1, 1.0 - sum(head))] for head in accuracies]
    for truth in itertools.product(*outcomes):
        path = tuple(choice for choice, _ in truth)
        length = 0
        while length < len(path) and path[: length + 1] in held:
            length += 1
        expected += length * math.prod(probability for _, probability in truth)
    return expected


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("depths", [[3, 2], [2, 2, 2], [1, 3, 1]])
def test_greedy_is_optimal_for_every_size(seed: int, depths: list[int]) -> None:
    accuracies = random_accuracies(random.Random(seed), depths)
    for num_nodes in range(6):
        tree = build_static_tree(accuracies, num_nodes)
        best = max(expected_accepted_length(accuracies, nodes) for nodes in all_trees(accuracies, num_nodes))
        assert expected_accepted_length(accuracies, tree) == pytest.approx(best, abs=1e-12)


def test_brute_force_sees_a_worse_rule() -> None:
    # Breadth first, what one would do without measuring: the check above must tell it from the best.
    accuracies = [[0.8, 0.05], [0.7, 0.1]]
    level_by_level = all_nodes(accuracies)[:3]
    best = max(expected_accepted_length(accuracies, nodes) for nodes in all_trees(accuracies, 3))
    assert expected_accepted_length(accuracies, level_by_level) < best - 0.01
    assert expected_accepted_length(accuracies, build_static_tree(accuracies, 3)) == pytest.approx(best)


@pytest.mark.parametrize("seed", range(4))
def test_expected_length_is_what_walking_gives(seed: int) -> None:
    accuracies = random_accuracies(random.Random(seed), [3, 2, 2])
    tree = build_static_tree(accuracies, 9)
    assert expected_accepted_length(accuracies, tree) == pytest.approx(accepted_by_walking(accuracies, tree))
    # The sum of accuracies that a node on its own has, instead of products along the path, is another number.
    assert sum(accuracies[len(n) - 1][n[-1]] for n in tree) != pytest.approx(accepted_by_walking(accuracies, tree), abs=0.05)


def test_parents_stand_before_children_even_when_certain() -> None:
    # Products tie all the way down: the shallower node first, or the tree is none.
    tree = build_static_tree([[1.0, 0.0], [1.0], [1.0]], 5)
    assert tree == [(0,), (0, 0), (0, 0, 0)]  # and nothing that can never be accepted
    assert parents_of(tree) == [-1, 0, 1]


def test_trees_are_nested_and_make_draft_trees() -> None:
    accuracies = random_accuracies(random.Random(5), [4, 4, 4])
    whole = build_static_tree(accuracies, 30)
    assert all(build_static_tree(accuracies, n) == whole[:n] for n in range(30))
    tree = DraftTree(list(range(30)), parents_of(whole))
    assert tree.depths() == [len(node) for node in whole]
    products = node_probabilities(accuracies, whole)
    assert products == sorted(products, reverse=True)


def test_what_is_no_tree_is_refused() -> None:
    with pytest.raises(ValueError, match="no tree"):
        expected_accepted_length([[0.5], [0.5]], [(0, 0)])
    with pytest.raises(ValueError, match="no tree"):
        expected_accepted_length([[0.5], [0.5]], [(0,), (0,)])
    with pytest.raises(ValueError, match="before its parent"):
        parents_of([(0, 0), (0,)])
    for wrong in ([[0.7, 0.4]], [[-0.1]], [[1.2]], [[float("nan")]]):
        with pytest.raises(ValueError, match="head 0"):
            build_static_tree(wrong, 1)
    with pytest.raises(ValueError, match="num_nodes=-1"):
        build_static_tree([[0.5]], -1)


def test_free_rows_take_every_node_and_dear_rows_none() -> None:
    accuracies = [[0.6, 0.2], [0.5, 0.2]]
    assert choose_num_nodes(accuracies, lambda rows: 1.0, 0.1) == 6
    assert choose_num_nodes(accuracies, lambda rows: float(rows), 0.1) == 0
    assert choose_num_nodes(accuracies, lambda rows: 1.0, 10.0) == 0  # drafting costs ten plain steps


@pytest.mark.parametrize("seed", range(8))
def test_the_chosen_size_is_the_best_of_all_sizes(seed: int) -> None:
    draw = random.Random(seed)
    accuracies = random_accuracies(draw, [3, 3, 2])
    cost, draft = {1: 1.0, 4: 1.0 + draw.random(), 9: 2.0 + draw.random(), 20: 4.0}, draw.random() / 2
    chosen = choose_num_nodes(accuracies, cost, draft)

    def rate(count: int) -> float:
        emitted = 1.0 + expected_accepted_length(accuracies, build_static_tree(accuracies, count))
        return emitted / (seconds_of_rows(cost, 1 + count) + (draft if count else 0.0))

    assert rate(chosen) == pytest.approx(max(rate(count) for count in range(20)))


@pytest.mark.parametrize("seed", range(8))
def test_the_fastest_tree_is_the_best_of_all_levels_and_sizes(seed: int) -> None:
    draw = random.Random(seed)
    accuracies = random_accuracies(draw, [3, 3, 2])
    most = [3, 3 + 9, 3 + 9 + 18]
    slope, level, plain = 0.3 * draw.random(), 0.4 * draw.random(), 1.0
    rounds = [{n: plain + level * k + slope * n for n in (1, most[k - 1])} for k in (1, 2, 3)]
    found = fastest_tree(accuracies, plain, rounds)

    def rate(levels: int, count: int) -> float:
        nodes = build_static_tree(accuracies[:levels], count)
        return (1.0 + expected_accepted_length(accuracies, nodes)) / (plain + level * levels + slope * count)

    best = max([1.0 / plain, *(rate(levels, n) for levels in (1, 2, 3) for n in range(1, most[levels - 1] + 1))])
    assert found.tokens_per_second == pytest.approx(best)
    assert found.expected_accepted == pytest.approx(expected_accepted_length(accuracies, found.nodes))


def test_the_fastest_tree_spares_dear_levels_and_may_be_none() -> None:
    accuracies = [[0.6, 0.2], [0.5, 0.2]]
    assert fastest_tree(accuracies, 1.0, [{2: 1.0}, {6: 1.0}]).nodes == build_static_tree(accuracies, 6)
    assert fastest_tree(accuracies, 1.0, [{2: 1.0}, {6: 3.0}]).nodes == [(0,), (1,)]
    assert fastest_tree(accuracies, 1.0, [{2: 2.0}, {6: 3.0}]).nodes == []
    uneven = fastest_tree(accuracies, 1.0, [{1: 1.5, 2: 1.1}, {6: 9.0}])  # one more node made it no cheaper: both cost the mean
    assert uneven.tokens_per_second == pytest.approx(1.8 / 1.3)


def test_costs_between_measured_rows() -> None:
    cost = {1: 2.0, 5: 4.0, 8: 4.0}
    assert [seconds_of_rows(cost, rows) for rows in (1, 2, 3, 5, 6, 8)] == [2.0, 2.5, 3.0, 4.0, 4.0, 4.0]
    assert seconds_of_rows(lambda rows: rows / 2, 3) == 1.5
    for rows in (0, 9):
        with pytest.raises(ValueError, match="measured were"):
            seconds_of_rows(cost, rows)
    with pytest.raises(ValueError, match="above 0"):
        seconds_of_rows(lambda rows: 0.0, 1)
    assert best_num_nodes([0.9, 0.5, 0.1], [1.0, 1.1, 1.2, 1.6], 0.2) == 2
