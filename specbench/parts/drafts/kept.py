"""The outputs of earlier requests in one index: what a drafter with scope="session" remembers of the texts it has seen."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from specbench.engine.request import Request, cut
from specbench.parts.drafts.suffix import SuffixAutomaton


class KeptTexts:
    """`begin` per request, `add` per round. index: of the outputs of the requests before; grows between requests alone.

    max_tokens: in the index at most, 0 for none; the oldest outputs are dropped, a quarter of the room at a time, because the
    index is then made anew.
    """

    def __init__(self, max_tokens: int):
        self.max_tokens = max_tokens
        self.clear()

    def clear(self) -> None:
        self.texts: deque[list[int]] = deque()
        self.index = SuffixAutomaton()
        self.request: Request | None = None
        self.output: list[int] = []

    def begin(self, request: Request, first_token: int) -> None:
        if self.request is not None and self.max_tokens:
            done, _ = cut(self.output, self.request.max_new_tokens, self.request.eos_ids)
            self._keep(done[: self.max_tokens])
        self.request, self.output = request, [first_token]

    def add(self, tokens: Sequence[int]) -> None:
        self.output += tokens

    def _keep(self, text: list[int]) -> None:
        self.texts.append(text)
        new = [text]
        if sum(map(len, self.texts)) > self.max_tokens:
            while sum(map(len, self.texts)) > max(len(text), 3 * self.max_tokens // 4):
                self.texts.popleft()
            self.index, new = SuffixAutomaton(), list(self.texts)
        for one in new:
            self.index.end_text()
            self.index.extend(one)
