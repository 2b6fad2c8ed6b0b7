"""A suffix automaton of texts: where their ends stood before, how often, and what followed (Blumer et al. 1985).

Its states are the sets of places where substrings end: substrings that always end together share one, so that n tokens make at
most 2n states, and a token is added in constant time but for the walk that counts. It knows what a suffix tree with counts
knows: the occurrences of every substring, and of every substring that goes on from it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence

ROOT = 0


class SuffixAutomaton:
    """Grown by `add`, token by token; `end_text` begins another text, and nothing reaches across.

    By state: following[s] (token -> state), link[s] (the longest suffix that also ends elsewhere, -1 of the root), length[s]
    (of its longest substring), count[s] (occurrences) and latest[s] (the place behind the latest one, in `tokens`).
    """

    def __init__(self, tokens: Iterable[int] = ()):
        self.following: list[dict[int, int]] = [{}]
        self.link, self.length, self.count, self.latest = [-1], [0], [0], [0]
        self.tokens: list[int] = []
        self.end_text()
        self.extend(tokens)

    def end_text(self) -> None:
        """The next token begins a text."""
        self.last = ROOT
        self.before = 0  # where the longest suffix that stood before ended then: what followed it is tokens[before:]

    def extend(self, tokens: Iterable[int]) -> None:
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        following, link, length = self.following, self.link, self.length
        self.tokens.append(token)
        known = following[self.last].get(token)
        if known is not None:  # only behind `end_text`: the beginning of this text stood in another
            state = self._tight(self.last, token, known)
        else:
            state = self._state({}, ROOT, length[self.last] + 1, 0)
            above = self.last
            while above >= 0 and token not in following[above]:
                following[above][token] = state
                above = link[above]
            if above >= 0:
                link[state] = self._tight(above, token, following[above][token])
        self.last = state
        count, latest, end = self.count, self.latest, len(self.tokens)
        self.before = latest[link[state]] if known is None else latest[state]
        while state > ROOT:
            count[state] += 1
            latest[state] = end
            state = link[state]

    def _tight(self, above: int, token: int, state: int) -> int:
        """The state of the longest substring of `above` and the token: `state`, or a part split off from it."""
        following, length = self.following, self.length
        if length[state] == length[above] + 1:
            return state
        part = self._state(dict(following[state]), self.link[state], length[above] + 1, self.count[state])
        self.latest[part] = self.latest[state]
        self.link[state] = part
        while above >= 0 and following[above].get(token) == state:
            following[above][token] = part
            above = self.link[above]
        return part

    def _state(self, following: dict[int, int], link: int, length: int, count: int) -> int:
        self.following.append(following)
        self.link.append(link)
        self.length.append(length)
        self.count.append(count)
        self.latest.append(0)
        return len(self.link) - 1

    # What is asked.

    @property
    def match(self) -> int:
        """Length of the longest suffix of the text that stood before."""
        known = self.length[self.last] if self.count[self.last] > 1 else self.length[self.link[self.last]]
        return known if self.last else 0

    def continued(self, length: int) -> list[int]:
        """What followed that suffix at the latest place where it stood; what reaches up to the end goes round, as in LZ77."""
        followed = self.tokens[self.before : self.before + length]
        while len(followed) < length:
            followed += followed[: length - len(followed)]
        return followed

    def suffixes(self, state: int, length: int, longest: int) -> Iterator[tuple[int, int]]:
        """(state, length) of the suffixes that differ in what followed, of a substring of that state, the longest first; none
        is longer than `longest`."""
        while state > ROOT:
            shorter = self.link[state]
            if self.length[shorter] < longest:
                yield state, min(length, longest)
            state, length = shorter, self.length[shorter]

    def children(self, state: int) -> Iterator[tuple[int, float, int]]:
        """(token, share, state) of what followed, by counts; the earliest seen first."""
        following, count = self.following[state], self.count
        total = sum(count[below] for below in following.values())
        return ((token, count[below] / total, below) for token, below in following.items())

    @property
    def nbytes(self) -> int:
        lists = (self.following, self.link, self.length, self.count, self.latest, self.tokens)
        return sum(map(sys.getsizeof, lists)) + sum(map(sys.getsizeof, self.following))


class Follower:
    """Where the end of a text that grows stands in an automaton that does not."""

    def __init__(self, automaton: SuffixAutomaton, tokens: Sequence[int]):
        self.automaton, self.state, self.length = automaton, ROOT, 0
        self.follow(tokens)

    def follow(self, tokens: Iterable[int]) -> None:
        following, link = self.automaton.following, self.automaton.link
        for token in tokens:
            while self.state and token not in following[self.state]:
                self.state = link[self.state]
                self.length = self.automaton.length[self.state]
            below = following[self.state].get(token)
            if below is not None:
                self.state, self.length = below, self.length + 1
