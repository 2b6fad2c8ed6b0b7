"""Two more after a round in which everything stood, one less after any other (transformers' `heuristic` schedule)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from specbench.parts.contracts import Stop

if TYPE_CHECKING:
    from specbench.engine.request import Request


class Heuristic(Stop):
    """draft_length: the length that every sample begins with; 4 where the method has none of its own."""

    def __init__(self, *, draft_length: int | None = None):
        super().__init__(draft_length)
        self.length = 0

    def begin(self, request: Request) -> None:
        self.length = 4 if self.draft_length is None else self.draft_length

    def budget(self, room: int) -> int:
        return min(room, self.length)

    def learn(self, num_drafted: int, num_accepted: int) -> None:
        if num_drafted:
            self.length = self.length + 2 if num_accepted == num_drafted else max(1, self.length - 1)
