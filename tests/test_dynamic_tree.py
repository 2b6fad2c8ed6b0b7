"""Dynamic trees: expansion and re-ranking against brute force, and what keeps a kept set a tree."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from specbench.engine.dynamic_tree import expand, frontier, keep_best, renumber
from specbench.engine.tree import DraftTree


def grown(depth: int, top_k: int, vocab_size: int, seed: int) -> tuple[list[int], list[float], list[int]]:
    """Tokens, scores and parents of a whole expansion below distributions that depend on the path alone."""
    tokens: list[int] = []
    scores: list[float] = []
    parents: list[int] = []

    def path(node: int) -> tuple[int, ...]:
        return () if node < 0 else (*path(parents[node]), tokens[node])

    def logits(node: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(hash((seed, path(node))) % 2**31)
        return 2.0 * torch.randn(vocab_size, generator=generator)

    nodes, here = torch.tensor([-1]), torch.tensor([0.0])
    for _ in range(depth):
        level = expand(torch.stack([logits(node) for node in nodes.tolist()]), here, nodes, top_k)
        best = frontier(level.scores, top_k)
        nodes, here = best + len(tokens), level.scores[best]
        tokens += level.tokens.tolist()
        scores += level.scores.tolist()
        parents += level.parents.tolist()
    return tokens, scores, parents


def test_expansion_offers_the_likeliest_children() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0], [5.0, 0.0, 4.0, 0.0]])
    level = expand(logits, torch.tensor([-1.0, -2.0]), torch.tensor([7, 9]), 2)
    assert level.tokens.tolist() == [1, 3, 0, 2]
    assert level.parents.tolist() == [7, 7, 9, 9]
    assert level.rows.tolist() == [0, 0, 1, 1]
    expected = logits.log_softmax(-1).gather(1, torch.tensor([[1, 3], [0, 2]])) + torch.tensor([[-1.0], [-2.0]])
    torch.testing.assert_close(level.scores, expected.flatten())
    assert expand(logits, torch.zeros(2), torch.tensor([0, 1]), 9).tokens.shape == (8,)  # no more than the vocabulary


def test_the_frontier_is_the_best_and_of_equals_the_first() -> None:
    assert frontier(torch.tensor([-3.0, -1.0, -2.0, -1.0]), 2).tolist() == [1, 3]
    assert frontier(torch.tensor([-1.0] * 40), 5).tolist() == [0, 1, 2, 3, 4]
    assert frontier(torch.tensor([-1.0, -2.0]), 5).tolist() == [0, 1]


def test_a_confident_draft_grows_deep_and_an_unsure_one_wide() -> None:
    def shape(peak: float) -> int:
        nodes, here = torch.tensor([-1]), torch.tensor([0.0])
        scores: list[float] = []
        parents: list[int] = []
        for _ in range(4):
            logits = torch.zeros(len(nodes), 10)
            logits[:, 3] = peak
            level = expand(logits, here, nodes, 4)
            best = frontier(level.scores, 4)
            nodes, here = best + len(scores), level.scores[best]
            scores += level.scores.tolist()
            parents += level.parents.tolist()
        kept = keep_best(scores, parents, 4)
        return DraftTree([0] * len(kept), renumber(kept, parents)).depth

    assert shape(9.0) == 4 and shape(0.1) == 1


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(("depth", "top_k"), [(1, 3), (3, 2), (4, 3)])
def test_kept_nodes_are_a_tree_and_the_best_of_all(seed: int, depth: int, top_k: int) -> None:
    tokens, scores, parents = grown(depth, top_k, 6, seed)
    assert len(tokens) == top_k + (depth - 1) * top_k * top_k
    for num_nodes in (0, 1, 3, 7, len(tokens), len(tokens) + 5):
        kept = keep_best(scores, parents, num_nodes)
        assert len(kept) == min(num_nodes, len(tokens)) and kept == sorted(kept)
        assert all(parents[node] < 0 or parents[node] in kept for node in kept)
        tree = DraftTree([tokens[node] for node in kept], renumber(kept, parents))  # asserts the topological order
        assert tree.depth <= depth
        for siblings in tree.children():
            assert len({tree.tokens[child] for child in siblings}) == len(siblings) <= top_k


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
        best = max(
            sum(scores[node] for node in nodes)
            for nodes in itertools.combinations(range(9), num_nodes)
            if all(parents[node] < 0 or parents[node] in nodes for node in nodes)
        )
        kept = keep_best(scores, parents, num_nodes)
        assert all(parents[node] < 0 or parents[node] in kept for node in kept)
        assert sum(scores[node] for node in kept) == pytest.approx(best)


def test_ties_go_to_the_parent() -> None:
    # A certain child has its parent's score: with room for one it must be the parent, or the child hangs on nothing.
    assert keep_best([-1.0, -1.0, -1.0], [-1, 0, 1], 1) == [0]
    assert keep_best([-1.0, -1.0, -1.0], [-1, 0, 1], 2) == [0, 1]


def test_scores_that_rise_down_a_path_are_refused() -> None:
    # What probabilities of single tokens (and not of paths) would do: the twin of the closedness above.
    with pytest.raises(ValueError, match="sums of log"):
        keep_best([-2.0, -0.1], [-1, 0], 1)
