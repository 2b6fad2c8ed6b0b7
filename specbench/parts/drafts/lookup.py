"""What followed the last tokens of a text the first time that they stood in it."""

from __future__ import annotations

from collections.abc import Container, Iterable


class Ngrams:
    """A text that grows, and where each run of at most `max_ngram` of its tokens ended when it was first seen."""

    def __init__(self, max_ngram: int, tokens: Iterable[int] = ()):
        self.max_ngram = max_ngram
        self.tokens: list[int] = []
        self.first_end: dict[tuple[int, ...], int] = {}
        self.extend(tokens)

    def extend(self, tokens: Iterable[int]) -> None:
        for token in tokens:
            self.tokens.append(token)
            end = len(self.tokens)
            for size in range(1, min(self.max_ngram, end) + 1):
                self.first_end.setdefault(tuple(self.tokens[end - size :]), end)

    def following(self, length: int, eos_ids: Container[int]) -> list[int]:
        """At most `length` tokens, those before an EOS: the longest run that stood elsewhere decides; none if none did."""
        end = len(self.tokens)
        for size in range(min(self.max_ngram, end - 1), 0, -1):
            start = self.first_end[tuple(self.tokens[end - size :])]
            if start < end:  # else it stands nowhere but at the end
                found = self.tokens[start : start + length]
                ends = [place for place, token in enumerate(found) if token in eos_ids]
                return found[: ends[0]] if ends else found
        return []
