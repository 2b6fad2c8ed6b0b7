"""One token behind the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from specbench.engine.tree import Contract, DraftTree
from specbench.parts.contracts import Shape

if TYPE_CHECKING:
    from torch import Tensor

    from specbench.parts.contracts import Source, Stop
    from specbench.parts.drafts.choice import Choice


class Chain(Shape):
    """The source's own sequence, until the stop says so; at once (`Source.chain`) where nobody looks at it on the way."""

    form = "chain"

    def grow(self, source: Source, max_depth: int, choice: Choice, position: int, stop: Stop) -> DraftTree:
        tokens: list[int] = []
        laws: list[Tensor] = []
        if not (choice.draws or stop.looks) and (at_once := getattr(source, "chain", None)) is not None:
            found = at_once(max_depth, choice, position)
            if found is not None:
                return DraftTree(found)
        logits = source.root()
        while True:
            if choice.draws:
                token, law = choice.draw(logits)
                laws.append(law)
            else:
                token = choice.token(logits, position + len(tokens))
            tokens.append(token)
            if len(tokens) >= max_depth or not stop.goes_on(logits, token):
                break
            logits = source.next([token], [len(tokens) - 2])
        if choice.draws:
            return DraftTree(tokens, contract=Contract.IID, q=laws)
        return DraftTree(tokens)
