"""What is said to a person goes to stderr, one line each, behind the name of who says it; stdout is for results."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """One line, at once, whatever line breaks the text holds."""
    print("specbench:", " ".join(text.split()), file=sys.stderr, flush=True)
