"""Outputs set side by side: identity, divergence, n-gram distances with known values, and what chance makes of them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from analysis_runs import write_run

from specbench.analysis.derive.outputs import (
    Agreement,
    Output,
    agree,
    distance,
    distinct,
    jensen_shannon,
    ngrams,
    read_outputs,
    same_prompts,
    total_variation,
)


def out(*ids: int, prompt: tuple[int, ...] = (1,)) -> Output:
    return Output(prompt, ids)


def test_agreement_counts_and_places() -> None:
    found = agree(
        [
            (out(1, 2, 3), out(1, 2, 3)),
            (out(1, 2, 3), out(1, 9, 3)),
            (out(1, 2), out(1, 2, 3)),  # an end is a difference
            (out(1), out(1, prompt=(7,))),
        ]
    )
    assert found.limits == []
    assert (found.compared, found.identical, found.positions, found.other_prompt) == (3, 1, [1, 2], 1)
    assert found.share == pytest.approx(1 / 3) and found.median_position == 1.5 and found.text() == "1/3"
    both = found + found
    assert (both.compared, both.identical, both.positions, both.other_prompt) == (6, 2, [1, 2, 1, 2], 2)
    assert Agreement().share is None and Agreement().median_position is None and Agreement().text() == "-"


def test_an_output_that_its_limit_cut_short_is_no_difference() -> None:
    """The twins: cut too, but behind another token; and as short by an end of its own."""
    cut, whole = Output((1,), (1, 2), was_cut=True), Output((1,), (1, 2, 3), was_cut=True)
    found = agree([(cut, whole), (whole, cut), (cut, out(1, 9, 3)), (out(1, 2), whole)])
    assert (found.compared, found.identical, found.limits, found.positions) == (4, 0, [2, 2], [1, 2])
    assert (found + found).limits == [2, 2, 2, 2]


def test_one_changed_token_of_a_stored_run_is_found(tmp_path: Path) -> None:
    """The twin: a run whose outputs are all right is found identical."""
    right, wrong = write_run(tmp_path / "a"), write_run(tmp_path / "b", wrong=True)
    for folder, expected in ((right, 0), (wrong, 2)):  # the wrong prompt, in both repeats
        ours, theirs = read_outputs(folder, "method"), read_outputs(folder, "baseline")
        found = agree((ours[key], theirs[key]) for key in ours)
        assert found.compared == 16 and found.compared - found.identical == expected
    output = read_outputs(wrong, "method")["humaneval/0", 0, 0]
    assert agree([(output, read_outputs(wrong, "baseline")["humaneval/0", 0, 0])]).positions == [len(output.ids) - 1]


def test_pairs_are_of_the_first_common_repeat_and_the_same_prompt() -> None:
    ours = {("a", 0, 0): out(1), ("a", 0, 1): out(2), ("b", 0, 0): out(3), ("b", 1, 0): out(4)}
    theirs = {("a", 0, 1): out(5), ("b", 0, 0): out(6), ("b", 1, 0): out(7, prompt=(9,)), ("c", 0, 0): out(8)}
    assert {(a.ids, b.ids) for a, b in same_prompts(ours, theirs)} == {((2,), (5,)), ((3,), (6,))}


# ------------------------------------------------------------------------------------------------ n-grams
def test_ngrams_do_not_span_outputs() -> None:
    assert ngrams([1, 2, 3], 2) == [(1, 2), (2, 3)] and ngrams([1], 2) == []
    assert distinct([[1, 2], [1, 2]], 2) == 0.5
    assert distinct([[1, 1, 1, 2]], 1) == 0.5
    assert distinct([[1]], 2) is None


def test_distances_of_known_laws() -> None:
    same, apart = np.array([3.0, 1.0]), np.array([0.0, 0.0, 2.0])
    assert total_variation(same, same) == 0 and jensen_shannon(same, same) == 0
    assert total_variation(np.array([1.0, 1.0, 0.0]), apart) == 1 and jensen_shannon(np.array([1.0, 1.0, 0.0]), apart) == 1
    p, q = np.array([0.75, 0.25]), np.array([0.25, 0.75])
    assert total_variation(p, q) == pytest.approx(0.5)
    entropy = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    assert jensen_shannon(p, q) == pytest.approx(1 - entropy)
    assert total_variation(10 * p, q) == pytest.approx(0.5), "counts need not be normalised"


def texts(rng: np.random.Generator, law: list[float], num_prompts: int = 30, length: int = 60) -> list[list[int]]:
    return [rng.choice(len(law), size=length, p=law).tolist() for _ in range(num_prompts)]


FAIR, TILTED = [0.25, 0.25, 0.25, 0.25], [0.34, 0.22, 0.22, 0.22]


def test_identical_texts_are_no_distance_apart() -> None:
    some = texts(np.random.default_rng(0), FAIR)
    found = distance([(t, t) for t in some], 2)
    assert found is not None and (found.value, found.expected, found.upper, found.p_value) == (0, 0, 0, 1)


def test_one_law_stays_within_chance_and_another_does_not() -> None:
    rng, within = np.random.default_rng(1), 0
    for _ in range(40):
        found = distance(list(zip(texts(rng, FAIR), texts(rng, FAIR), strict=True)), 1, permutations=400)
        assert found is not None and found.value > 0
        within += found.p_value > 0.05
    assert 33 <= within <= 40  # 38 on average
    other = distance(list(zip(texts(rng, FAIR), texts(rng, TILTED), strict=True)), 1)
    assert other is not None and other.value > other.upper and other.p_value < 0.01


def test_order_is_seen_by_bigrams_alone() -> None:
    ours, theirs = [[0, 1] * 30] * 20, [[0, 0, 1, 1] * 15] * 20
    pairs = list(zip(ours, theirs, strict=True))
    unigrams, bigrams = distance(pairs, 1), distance(pairs, 2)
    assert unigrams is not None and bigrams is not None
    assert unigrams.value == 0 and bigrams.value > 0.4 and bigrams.p_value < 0.01


def test_prompts_apart_are_no_difference_of_laws() -> None:
    """What each prompt is about lies far apart; exchanging within a prompt keeps that out."""
    rng = np.random.default_rng(2)
    pairs = []
    for prompt in range(20):
        base = 10 * prompt
        pairs.append(((base + rng.integers(0, 4, 50)).tolist(), (base + rng.integers(0, 4, 50)).tolist()))
    found = distance(pairs, 1)
    assert found is not None and found.p_value > 0.01


def test_nothing_to_compare() -> None:
    assert distance([], 1) is None and distance([([1], [2])], 2) is None
