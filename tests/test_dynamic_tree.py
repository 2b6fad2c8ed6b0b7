"""Dynamic trees: expansion and re-ranking against brute force, and what keeps a kept set a tree."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import pytest
import torch

from specbench.engine.ranks import likeliest, ranked
from specbench.engine.tree import EMPTY, DraftTree
from specbench.parts.shapes.dynamic import ROOT, Growth

Law = Callable[[tuple[int, ...]], list[float]]  # path -> log-probability of each token after it


def path_law(seed: int, vocab_size: int, coarse: bool) -> Law:
    """Distributions that depend on the path alone; coarse ones are full of ties and certainties."""

    def law(path: tuple[int, ...]) -> list[float]:
        draw = random.Random(f"{seed}/{path}")
        if coarse:
            return sorted((draw.choice([0.0, -0.5, -1.0, -2.0, -math.inf]) for _ in range(vocab_size)), reverse=True)
        weights = [draw.random() ** 4 for _ in range(vocab_size)]
        return [math.log(w / sum(weights)) for w in weights]

    return law


def grow(law: Law, depth: int, top_k: int, num_nodes: int) -> tuple[Growth, int]:
    """A tree under a law, and how many nodes were expanded."""
    growth, frontier, expanded = Growth(top_k, num_nodes), [ROOT], 0

    def path(node: int) -> tuple[int, ...]:
        return () if node < 0 else (*path(growth.parents[node]), growth.tokens[node])

    for _ in range(depth):
        rows = [law(path(node)) for node in frontier]
        order = [sorted(range(len(row)), key=lambda t: (-row[t], t))[:top_k] for row in rows]
        above = growth.reached(frontier)
        paths = [base + row[t] for base, row, tokens in zip(above, rows, order, strict=True) for t in tokens]
        expanded += len(frontier)
        frontier = growth.offer(frontier, [t for tokens in order for t in tokens], paths)
        if not frontier:
            break
    return growth, expanded


def paper(law: Law, depth: int, top_k: int, num_nodes: int) -> set[tuple[int, ...]]:
    """EAGLE-2 written down plainly: whole levels, then the best paths over all of them, shorter and earlier first."""
    pool: list[tuple[tuple[int, ...], float]] = []
    level: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    for _ in range(depth):
        offered = []
        for path, score in sorted(level, key=lambda item: place(pool, item[0])):
            row = law(path)
            for token in sorted(range(len(row)), key=lambda t: (-row[t], t))[:top_k]:
                offered.append(((*path, token), score + row[token]))
        pool += offered
        level = sorted(offered, key=lambda item: -item[1])[:top_k]  # stable: of equals the first
    best = sorted((item for item in pool if item[1] > -math.inf), key=lambda item: -item[1])
    return {path for path, _ in best[:num_nodes]}


def place(pool: list[tuple[tuple[int, ...], float]], path: tuple[int, ...]) -> int:
    return next((i for i, (known, _) in enumerate(pool) if known == path), -1)


def paths_of(tree: DraftTree) -> set[tuple[int, ...]]:
    paths: list[tuple[int, ...]] = []
    for node, token in enumerate(tree.tokens):
        parent = tree.parent(node)
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    return set(paths)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(("depth", "top_k"), [(1, 3), (3, 2), (4, 3), (5, 1)])
@pytest.mark.parametrize("coarse", [False, True])
def test_growth_is_the_papers_tree_without_its_waste(seed: int, depth: int, top_k: int, coarse: bool) -> None:
    law = path_law(seed, 6, coarse)
    for num_nodes in (1, 3, 7, 40):
        growth, expanded = grow(law, depth, top_k, num_nodes)
        tokens, parents = growth.best()
        tree = DraftTree(tokens, parents)  # asserts that parents come first
        assert paths_of(tree) == paper(law, depth, top_k, num_nodes)
        assert len(tokens) <= num_nodes and tree.depth <= depth and expanded <= 1 + (depth - 1) * top_k
        for siblings in tree.children():
            assert len({tree.tokens[child] for child in siblings}) == len(siblings) <= top_k


def test_whole_levels_are_saved_where_the_draft_is_unsure() -> None:
    flat: Law = lambda path: [math.log(0.1)] * 10  # noqa: E731
    growth, expanded = grow(flat, 6, 4, 4)
    assert expanded == 1 and growth.parents == [ROOT] * 4


def test_a_confident_draft_grows_deep_and_an_unsure_one_wide() -> None:
    def depth(peak: float) -> int:
        law: Law = lambda path: torch.tensor([0.0, 0.0, 0.0, peak] + [0.0] * 6).log_softmax(-1).tolist()  # noqa: E731
        return DraftTree(*grow(law, 4, 4, 4)[0].best()).depth

    assert depth(9.0) == 4 and depth(0.1) == 1


def test_the_likeliest_tokens() -> None:
    scores = torch.tensor([[0.0, 3.0, 1.0, 2.0], [5.0, -math.inf, 4.0, -math.inf]])
    tokens, values = likeliest(scores, 2)
    assert tokens == [[1, 3], [0, 2]]
    torch.testing.assert_close(torch.tensor(values), scores.log_softmax(-1).gather(1, torch.tensor(tokens)))
    assert [len(row) for row in likeliest(scores, 9)[0]] == [4, 4]  # no more than the vocabulary


def offered(scores: list[float], parents: list[int], num_nodes: int) -> Growth:
    """A tree to which these nodes were offered one by one."""
    growth = Growth(2, num_nodes)
    for node, (score, parent) in enumerate(zip(scores, parents, strict=True)):
        growth.offer([parent], [node], [score])
    return growth


def test_the_frontier() -> None:
    scores = [-1.0, -5.0, -3.0, -1.0, -2.0, -1.0]
    assert Growth(2, 99).offer([ROOT], range(6), scores) == [0, 3]
    for top_k, num_nodes, frontier in ((2, 99, [3, 5]), (4, 4, [3, 5]), (4, 3, [])):
        growth = Growth(top_k, num_nodes)
        growth.offer([ROOT], range(2), scores[:2])
        # With four the fourth best is -2: its node is kept, its children could not be.
        assert growth.offer([0], range(4), scores[2:]) == frontier


@pytest.mark.parametrize("seed", range(10))
def test_re_ranking_equals_brute_force_over_all_trees(seed: int) -> None:
    draw = random.Random(seed)
    parents: list[int] = []
    scores: list[float] = []
    for node in range(9):  # any tree, coarse scores: ties in plenty
        parent = draw.randrange(-1, node)
        parents.append(parent)
        scores.append((scores[parent] if parent >= 0 else 0.0) - draw.choice([0.0, 0.5, 1.0]))
    for num_nodes in range(1, 8):
        tokens, numbered = offered(scores, parents, num_nodes).best()  # a node's token is its number
        assert len(tokens) == num_nodes and tokens == sorted(tokens)
        assert [tokens[parent] if parent >= 0 else ROOT for parent in numbered] == [parents[token] for token in tokens]
        best = max(
            sum(scores[node] for node in nodes)
            for nodes in itertools.combinations(range(9), num_nodes)
            if all(parents[node] < 0 or parents[node] in nodes for node in nodes)
        )
        assert sum(scores[token] for token in tokens) == pytest.approx(best)
        assert DraftTree(tokens, numbered).depth <= 9


def test_ties_go_to_the_parent() -> None:
    # A certain child has its parent's score: with room for one it must be the parent, or the child hangs on nothing.
    assert offered([-1.0, -1.0, -1.0], [-1, 0, 1], 1).best() == ([0], [-1])
    assert offered([-1.0, -1.0, -1.0], [-1, 0, 1], 2).best() == ([0, 1], [-1, 0])
    # Rounding must not put a child before its parent: nothing is above certainty, nor a path above the one that it continues.
    sure = torch.tensor([[0.1, -40.0, -40.0], [31.7, -3.0, 2.0], [1e-7, -60.0, -70.0]])
    assert all(path <= above for above in (0.0, -0.3) for path in ranked(sure, 2, above=[above] * 3)[1])


def test_scores_that_rise_down_a_path_are_refused() -> None:
    # What probabilities of single tokens (and not of paths) would do: the twin of the closedness above.
    with pytest.raises(ValueError, match="sums of log"):
        offered([-2.0, -0.1], [-1, 0], 2).best()


@pytest.mark.parametrize("seed", range(20))
def test_the_path_of_first_children_leads(seed: int) -> None:
    """The same tree in the same order of siblings, numbered so that its first path is the first nodes."""
    draw = random.Random(seed)
    parents = [draw.randrange(-1, node) for node in range(draw.randrange(1, 14))]
    tokens = [draw.randrange(3) for _ in parents]
    tree, before = (DraftTree(list(tokens), list(parents), q=[torch.tensor(n) for n in range(len(tokens))]) for _ in range(2))
    tree.lead_with_first_path()

    def walk(of: DraftTree, node: int) -> list[object]:
        """What is below a node, by siblings; `q` names the nodes."""
        assert of.q is not None
        return [(of.tokens[child], int(of.q[child]), walk(of, child)) for child in of.children()[node + 1]]

    assert walk(tree, -1) == walk(before, -1)
    path, children = [], tree.children()
    while siblings := children[path[-1] + 1 if path else 0]:
        path.append(siblings[0])
    assert path == list(range(len(path)))
    assert tree.parents is not None and all(parent < node for node, parent in enumerate(tree.parents))


def test_a_chain_is_left_as_it_is() -> None:
    for tree in (DraftTree([5, 6, 7]), DraftTree([5, 6, 7], [-1, 0, 1]), EMPTY):
        tokens, parents = tree.tokens, tree.parents
        tree.lead_with_first_path()
        assert tree.tokens is tokens and tree.parents is parents
