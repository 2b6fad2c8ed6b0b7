"""What is said to a person goes to stderr, one line each, behind the name of who says it; stdout is for results."""

from __future__ import annotations

import sys
import unicodedata


def visible(text: str) -> str:
    """The text with every sign that acts instead of being read (a terminal's escapes, line breaks, reversals of direction,
    halves of a character) as its escape: names and messages may come from a stranger's folder or file."""
    if text.isprintable():
        return text
    return "".join(sign if not _acts(sign) else sign.encode("unicode_escape").decode() for sign in text)


def _acts(sign: str) -> bool:
    return unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def of_file(error: OSError) -> str:
    """A file that cannot be read or written, as said to a person."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def counted(span: object, noun: str) -> str:
    """`1 repeat`, `2 to 3 repeats`, `36 runs`."""
    return f"{span} {noun}{'' if str(span) == '1' else 's'}"


def say(text: str) -> None:
    """One line, at once, whatever line breaks the text holds."""
    print("specbench:", visible(" ".join(text.split())), file=sys.stderr, flush=True)
