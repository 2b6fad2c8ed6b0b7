"""When a draft that replays the target's text is wrong on purpose: patterns over the positions of an output.

    pair.draft_errors=never | always | iid:<rate>[@seed] | every:<k> | bursts:<right>+<wrong> | end:<share>

A pattern is a pure function of (pattern, sample, position), so whoever reads a finished run can say which of its drafts were
wrong (the analysis does). Pure Python: no model is needed to know. The draft itself is `specbench.pair.scripted`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass

from specbench.config.options import ConfigError

FORMS = "never, always, iid:<rate>[@seed], every:<k>, bursts:<right>+<wrong>, end:<share>"
_NUMBER = r"\d+(?:\.\d+)?|\.\d+"
_WHOLE = r"\d{1,9}"
_SHAPES = {
    "never": re.compile(""),
    "always": re.compile(""),
    "iid": re.compile(rf"(?P<rate>{_NUMBER})(?:@(?P<seed>{_WHOLE}))?"),
    "every": re.compile(rf"(?P<period>{_WHOLE})"),
    "bursts": re.compile(rf"(?P<right>{_WHOLE})\+(?P<wrong>{_WHOLE})"),
    "end": re.compile(rf"(?P<rate>{_NUMBER})"),
}


@dataclass(frozen=True)
class DraftErrors:
    """A pattern of wrong drafts. Positions count output tokens from 0; position 0 is the prefill's and is never drafted.

    never, always. iid: each position by itself with probability `rate`, from a hash of (seed, sample, turn, position).
    every: positions that `period` divides. bursts: `right` right ones from position 1 on, then `wrong` wrong ones, and again.
    end: the last share `rate` of the positions that the length limit allows, whether the text gets there or not.
    """

    kind: str
    rate: float = 0.0
    seed: int = 0
    period: int = 1
    right: int = 0
    wrong: int = 0

    @classmethod
    def parse(cls, text: str, key: str = "pair.draft_errors") -> DraftErrors:
        """Raises ConfigError for an unknown form, a rate or share outside [0, 1], a period or a burst of length 0."""
        kind, colon, rest = text.partition(":")
        shape = _SHAPES.get(kind)
        found = shape.fullmatch(rest) if shape is not None else None
        if found is None or (bool(colon) != bool(rest)):
            raise ConfigError(key, text, f"possible: {FORMS}, or null for a draft of its own")
        given = {name: value for name, value in found.groupdict().items() if value is not None}
        made = cls(kind, **{name: float(v) if name == "rate" else int(v) for name, v in given.items()})  # type: ignore[arg-type]
        if not 0.0 <= made.rate <= 1.0:
            raise ConfigError(key, text, "the share of wrong positions lies between 0 and 1")
        if kind == "every" and made.period < 1:
            raise ConfigError(key, text, "every:1 is always; give a whole number from 1 up")
        if kind == "bursts" and made.wrong < 1:
            raise ConfigError(key, text, "a burst has at least 1 wrong position; with none it is never")
        return made

    def wrong_positions(self, sample_id: str, turn: int, max_new_tokens: int) -> Callable[[int], bool]:
        """Whether the draft of a position (1 to max_new_tokens - 1) is wrong in this sample's turn."""
        if self.kind == "iid":
            name, limit = f"{self.seed}/{turn}/{sample_id}/", self.rate * 2.0**64
            return lambda position: _hash(f"{name}{position}") < limit
        if self.kind == "every":
            return lambda position: position % self.period == 0
        if self.kind == "bursts":
            length = self.right + self.wrong
            return lambda position: (position - 1) % length >= self.right
        if self.kind == "end":
            first = max_new_tokens - round(self.rate * max_new_tokens)
            return lambda position: position >= first
        return lambda position: self.kind == "always"


def wrong_token(right: int, sample_id: str, turn: int, position: int, vocab_size: int, never: frozenset[int]) -> int:
    """A token id that is not `right` and not in `never` (EOS ids: a draft that ends stops drafting, and errors are to look
    like any other token). Raises ValueError if the vocabulary holds no such token."""
    start = 1 + _hash(f"token/{turn}/{sample_id}/{position}") % max(1, vocab_size - 1)
    for step in range(vocab_size):
        token = (right + start + step) % vocab_size
        if token != right and token not in never:
            return token
    raise ValueError(f"no wrong token among {vocab_size} ids: all but {right} end a sequence")


def _hash(text: str) -> int:
    """64 bits, the same in every process, on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
