"""A draft that replays the target's own text, wrong on purpose where a pattern says so: acceptance is set, not measured.

Methods see an ordinary draft model. Its forwards are those of the pair's real draft, so they take what a draft's forwards take;
only their logits are replaced by a point mass on the token that the script has for the position. The target's text is recorded
beforehand, when a prompt is announced and no clock runs (`Model.expect`), by one-row forwards of the target in the draft's own
process. What the script says depends on the position alone: behind a wrong token of its own it goes on with the target's text,
as if nothing had happened.

Greedy decoding only. Where two of the target's logits all but tie, a verification over several rows can take the other one: the
text then leaves the script, acceptance falls to nothing from there on, and the lossless verdict names the tie.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specbench.config.draft_errors import DraftErrors, wrong_token
from specbench.engine.model import Model
from specbench.engine.target import open_target

if TYPE_CHECKING:
    from specbench.engine.request import Request


@dataclass
class Script:
    """What the draft says after the fed token of index `first` (the prompt's last) and after each one behind it."""

    first: int
    tokens: list[int]

    def at(self, index: int) -> int:
        """The token after fed token `index`; 0 before the script begins and after its end, where nobody looks."""
        place = index - self.first
        return self.tokens[place] if 0 <= place < len(self.tokens) else 0


@dataclass
class ReplayModel(Model):
    """A draft `Model` around a real draft and a target. vocab_size is the target's: its script may need any of its ids."""

    target: Model | None = None
    errors: DraftErrors = field(default_factory=lambda: DraftErrors("never"))

    @classmethod
    def around(cls, draft: Model, target: Model, errors: DraftErrors) -> ReplayModel:
        """`target`: whose text it is; any device will do, and none of it is computed while a clock runs."""
        own = {f.name: getattr(draft, f.name) for f in dataclasses.fields(Model)}
        own |= {"vocab_size": target.vocab_size, "is_draft": True}
        return cls(**own, target=target, errors=errors)

    def __post_init__(self) -> None:
        self._texts: dict[tuple[tuple[int, ...], int], list[int]] = {}  # the target's text by prompt and length
        self.script: Script | None = None

    def answer(self, logits: Tensor, past: int, rows: int) -> Tensor:
        """The script's tokens; before any prompt is announced (probes, calibrations) the draft's own logits."""
        if self.script is None:
            return super().answer(logits, past, rows)
        kept = len(logits)
        said = logits.new_full((kept, self.vocab_size), -torch.inf)
        said[range(kept), [self.script.at(past + row) for row in range(rows - kept, rows)]] = 0.0
        return said

    def expect(self, request: Request) -> None:
        """Record the target's text behind this prompt, once per prompt, and write the script of this sample's turn."""
        key = (request.prompt_ids, request.max_new_tokens)
        if key not in self._texts:
            assert self.target is not None
            self._texts[key] = greedy_text(self.target, *key)
        text = self._texts[key]
        is_wrong = self.errors.wrong_positions(request.sample_id, request.turn, request.max_new_tokens)

        def said(position: int) -> int:
            if position == 0 or not is_wrong(position):
                return text[position]
            facts = (request.sample_id, request.turn, position, self.vocab_size, request.eos_ids)
            return wrong_token(text[position], *facts)

        self.script = Script(len(request.prompt_ids) - 1, [said(position) for position in range(len(text))])


def greedy_text(target: Model, prompt_ids: tuple[int, ...], num_tokens: int) -> list[int]:
    """The target's argmax tokens behind a prompt, past any EOS, one row at a time."""
    session = open_target(target)
    session.start(len(prompt_ids) + num_tokens)
    text = session.prefill(prompt_ids).logits.argmax(-1).tolist()
    while len(text) < num_tokens:
        text += session.feed(text[-1:], last_only=True).argmax(-1).tolist()
    return text
