"""What the text family stands on: the automaton against a search through all substrings, trees of counts against all paths."""

from __future__ import annotations

import io
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specbench.config.options import ConfigError
from specbench.parts.drafts.datastore import Datastore
from specbench.parts.drafts.suffix import Follower, SuffixAutomaton
from specbench.parts.shapes.likeliest import grow_likeliest

TOKENS = st.lists(st.integers(0, 2), max_size=14)
TEXTS = st.lists(TOKENS, min_size=1, max_size=4)


def built(texts: list[list[int]]) -> SuffixAutomaton:
    automaton = SuffixAutomaton()
    for text in texts:
        automaton.end_text()
        automaton.extend(text)
    return automaton


def occurrences(texts: list[list[int]]) -> Counter[tuple[int, ...]]:
    return Counter(tuple(t[a:b]) for t in texts for a, b in itertools.combinations(range(len(t) + 1), 2))


def check_automaton(automaton: SuffixAutomaton, texts: list[list[int]]) -> None:
    """Every substring's state, count, continuations and latest place; suffixes of the last text with theirs."""
    counted = occurrences(texts)
    joined = [token for text in texts for token in text]
    for string in [(), *counted]:
        state = 0
        for token in string:
            state = automaton.following[state][token]
        assert automaton.length[state] >= len(string) > automaton.length[automaton.link[state]] or not string
        goes_on = {token: counted[(*string, token)] for token in range(3) if counted[(*string, token)]}
        total = sum(goes_on.values())
        assert {token: round(share * total) for token, share, _ in automaton.children(state)} == goes_on
        if string:
            assert automaton.count[state] == counted[string]
            end = automaton.latest[state]
            assert tuple(joined[end - len(string) : end]) == string
    last, earlier = texts[-1], texts[:-1]
    stood = [n for n in range(len(last) + 1) if n == 0 or counted[tuple(last[-n:])] > 1]
    assert automaton.match == max(stood, default=0)
    if automaton.match and not earlier:
        found = automaton.before
        assert found < len(last) and last[found - automaton.match : found] == last[-automaton.match :]
        assert not any(last[p - automaton.match : p] == last[-automaton.match :] for p in range(found + 1, len(last)))
        assert automaton.continued(len(last) - found) == last[found:]


@settings(max_examples=150, deadline=None)
@given(TEXTS)
def test_the_automaton_knows_every_substring(texts: list[list[int]]) -> None:
    check_automaton(built(texts), texts)
    assert len(built(texts).link) <= 2 * sum(map(len, texts)) + 1


def test_a_state_that_is_not_split_off_is_found_out() -> None:
    """The twin: without the split, substrings of other counts share a state."""

    class Unsplit(SuffixAutomaton):
        def _tight(self, above: int, token: int, state: int) -> int:
            return state

    with pytest.raises(AssertionError):
        check_automaton(Unsplit([0, 1, 0, 0, 1, 1]), [[0, 1, 0, 0, 1, 1]])
    check_automaton(SuffixAutomaton([0, 1, 0, 0, 1, 1]), [[0, 1, 0, 0, 1, 1]])


@settings(max_examples=100, deadline=None)
@given(TEXTS, TOKENS, st.integers(1, 6))
def test_a_text_is_followed_in_an_automaton_of_others(texts: list[list[int]], text: list[int], longest: int) -> None:
    automaton, counted = built(texts), occurrences(texts)
    follower = Follower(automaton, text)
    known = [n for n in range(1, len(text) + 1) if counted[tuple(text[-n:])]]
    assert follower.length == max(known, default=0)
    seen = list(automaton.suffixes(follower.state, follower.length, longest))
    lengths = [length for _, length in seen]
    assert lengths == sorted(set(lengths), reverse=True) and lengths[:1] == ([min(max(known), longest)] if known else [])
    for state, length in seen:
        assert automaton.count[state] == counted[tuple(text[-length:])]


def test_a_copy_that_reaches_the_end_goes_round() -> None:
    automaton = SuffixAutomaton([7, 1, 2, 3, 1, 2, 3])
    assert (automaton.match, automaton.continued(7)) == (3, [1, 2, 3, 1, 2, 3, 1])


@settings(max_examples=60, deadline=None)
@given(TOKENS.filter(bool), st.integers(1, 9), st.integers(1, 4))
def test_a_tree_of_counts_holds_the_likeliest_paths(text: list[int], num_nodes: int, depth: int) -> None:
    automaton = SuffixAutomaton(text)
    tree = grow_likeliest(0, automaton.children, num_nodes, depth)
    everything = grow_likeliest(0, automaton.children, 10**6, depth)
    assert len(everything.tokens) == len({s for s in occurrences([text]) if len(s) <= depth})
    best = sorted(everything.probabilities, reverse=True)[:num_nodes]
    assert tree.probabilities == best and all(parent < node for node, parent in enumerate(tree.parents))
    assert grow_likeliest(0, automaton.children, num_nodes, depth, least=0.5).probabilities == [p for p in best if p >= 0.5]
    chain = grow_likeliest(0, automaton.children, num_nodes, depth, branches=False)
    assert chain.draft().is_chain and len(chain.tokens) <= depth


# ------------------------------------------------------------------------------------------------ a corpus and its suffix array
def brute_continuations(texts: list[list[int]], pattern: list[int], depth: int) -> Counter[tuple[int, ...]]:
    """How often each beginning of what follows `pattern` follows it."""
    size, found = len(pattern), Counter[tuple[int, ...]]()
    for text in texts:
        for end in range(size, len(text) + 1):
            if text[end - size : end] == pattern:
                found.update(tuple(text[end : end + d]) for d in range(1, min(depth, len(text) - end) + 1))
    return found


@settings(max_examples=100, deadline=None)
@given(TEXTS, TOKENS.filter(bool), st.integers(1, 12), st.integers(1, 4))
def test_the_most_frequent_continuations_are_those_of_a_search(
    texts: list[list[int]], text: list[int], num_nodes: int, depth: int
) -> None:
    store = Datastore.build([token for one in texts for token in (*one, 9)], 9, 10)
    length, first, last = store.find_longest(text, longest=5, shortest=1)
    known = [n for n in range(1, min(5, len(text)) + 1) if occurrences(texts)[tuple(text[-n:])]]
    assert length == max(known, default=0)
    if not length:
        return
    assert last - first == occurrences(texts)[tuple(text[-length:])]
    tokens, parents = store.continuations(length, first, last, 1000, depth, num_nodes)
    paths: list[tuple[int, ...]] = []
    for token, parent in zip(tokens, parents, strict=True):
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    counted = brute_continuations(texts, text[-length:], depth)
    assert paths == sorted(counted, key=lambda path: (-counted[path], len(path), path))[:num_nodes]


def test_a_datastore_is_written_and_read_and_refused(tmp_path: Path) -> None:
    Datastore.build([1, 2, 3, 0, 1, 2, 4, 0], 0, 5).save(tmp_path, {"source": "test"})
    store = Datastore.load(str(tmp_path), 5)
    assert store.continuations(2, *store.find([1, 2]), 10, 3, 10) == ([3, 4], [-1, -1])
    for name, size in ((str(tmp_path / "none"), 5), (str(tmp_path), 4), (None, 5)):
        with pytest.raises(ConfigError, match=r"method\.datastore"):
            Datastore.load(name, size)


@pytest.mark.parametrize(
    ("file", "wrong"),
    [
        ("tokens.npy", lambda found: found + 90),  # beyond the vocabulary
        ("tokens.npy", lambda found: found - 90),
        ("tokens.npy", lambda found: found[::-1].copy()),  # another corpus'
        ("order.npy", lambda found: found + len(found)),
        ("order.npy", lambda found: found - len(found)),
        ("order.npy", lambda found: found * 0 - 1),
    ],
)
def test_a_datastore_in_which_nothing_would_be_found_is_refused(file: str, wrong: Any, tmp_path: Path) -> None:
    Datastore.build(list(range(1, 40)) * 3 + [7], 0, 50).save(tmp_path, {})
    Datastore.load(str(tmp_path), 50)  # the twin
    np.save(tmp_path / file, wrong(np.load(tmp_path / file)))
    with pytest.raises(ConfigError, match=r"^method\.datastore=.*damaged: order\.npy does not sort tokens\.npy"):
        Datastore.load(str(tmp_path), 50)


@pytest.mark.parametrize("file", ["tokens.npy", "order.npy", "datastore.json"])
def test_a_damaged_datastore_is_refused_in_one_line(file: str, tmp_path: Path) -> None:
    Datastore.build([1, 2, 3, 0, 1, 2, 4, 0], 0, 5).save(tmp_path, {"source": "test"})
    path = tmp_path / file
    whole, shorter = path.read_bytes(), io.BytesIO()
    np.save(shorter, np.arange(7, dtype=np.int32))
    for content in (b"", whole[:20], whole[:-20], b"x" + whole[1:], shorter.getvalue(), b"{}"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"^method\.datastore=[^\n]*$"):
            Datastore.load(str(tmp_path), 5)
    path.write_bytes(whole)
    assert len(Datastore.load(str(tmp_path), 5).tokens) == 8  # the twin
