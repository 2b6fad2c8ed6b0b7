"""Whether a reply's answer is the data set's: for methods whose text may differ from the baseline's, the column beside speed.

A grade compares final answers and nothing else; it is no leaderboard's harness, and the same for both arms.
"""

from __future__ import annotations

import re
from fractions import Fraction

_NUMBER = re.compile(r"(?:(?<![\w)])-)?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:/\d+)?")  # a minus behind a term takes away
_NO_MEANING = re.compile(r"\\left|\\right|\\[!,;: %$]|[%$\s]|\^\{?\\circ\}?")
_UNIT = re.compile(r"(?<=\S)\s*\\text\{[^{}]*\}\s*\.?\s*$")  # behind something: a text that stands alone is the answer itself
_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_VALUE = re.compile(r"[+-]?(?:\d+(?:\.\d+)?|\.\d+)(?:/\d+)?")  # no exponents: 1e999999999 would be written out


def is_right(kind: str, reply: str, answer: str) -> bool:
    """Whether `reply` gives `answer`.

    exact: the whole reply, white space at its ends aside. boxed: what its last \\boxed{} holds. number: its last number
    (thousands may have commas). boxed and number compare by value where both sides are numbers or plain fractions.
    """
    if kind == "exact":
        return reply.strip() == answer.strip()
    if kind == "boxed":
        given = last_boxed(reply)
    else:
        numbers = _NUMBER.findall(reply)
        given = numbers[-1] if numbers else None
    return given is not None and _plain(given) == _plain(answer)


def last_boxed(text: str) -> str | None:
    """The content of the last \\boxed{...} whose braces close; None without one."""
    for start in reversed([match.end() for match in re.finditer(r"\\boxed\s*\{", text)]):
        depth = 1
        for place in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if depth == 0:
                return text[start:place]
    return None


def _plain(text: str) -> Fraction | str:
    """A number where the text is one, else the text without what changes no meaning: spacing, units, degree and dollar."""
    bare = _NO_MEANING.sub("", _TEXT.sub(r"\1", _UNIT.sub("", text))).rstrip(".")
    bare = re.sub(r"\\[dt]frac", r"\\frac", bare)
    as_number = re.sub(r"^(-?)\\frac\{(\d+)\}\{(\d+)\}$", r"\1\2/\3", re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", bare))
    if not _VALUE.fullmatch(as_number):
        return bare
    try:
        return Fraction(as_number)
    except (ValueError, ZeroDivisionError):
        return bare
