"""Keep evaluation texts out of the training corpus: word n-gram overlap against every evaluation file that is present.

The 13-word window follows Brown et al. (2020), "Language Models are Few-Shot Learners", appendix C.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

WORDS = re.compile(r"[A-Za-z0-9]+")
WINDOW_WORDS = 13
SHORTEST_WORDS = 8  # texts below this many words are too generic to identify a source


def evaluation_files(folders: Iterable[Path]) -> list[Path]:
    """All ``.jsonl`` and ``.jsonl.gz`` files in `folders` (not recursive), sorted; missing folders count as empty."""
    found: set[Path] = set()
    for folder in folders:
        if folder.is_dir():
            found.update(p for p in folder.iterdir() if p.name.endswith((".jsonl", ".jsonl.gz")))
    return sorted(found)


def evaluation_texts(file: Path) -> Iterator[str]:
    """Every string inside every record of a JSON-lines file, prompts and reference answers alike."""
    opener = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                yield from _strings(json.loads(line))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _words(text: str) -> list[str]:
    return WORDS.findall(text.lower())


class OverlapFilter:
    """Remembers the n-grams of evaluation texts and recognises a document that contains one of them.

    A text of at least 13 words contributes all its 13-word windows; one of 8 to 12 words contributes itself as a whole.
    """

    def __init__(self, texts: Iterable[str]):
        self.windows: dict[int, set[int]] = {}
        self.num_texts = 0
        for text in texts:
            words = _words(text)
            size = min(len(words), WINDOW_WORDS)
            if size < SHORTEST_WORDS:
                continue
            self.num_texts += 1
            grams = self.windows.setdefault(size, set())
            for start in range(len(words) - size + 1):
                grams.add(hash(tuple(words[start : start + size])))

    def hits(self, document: str) -> bool:
        """Whether `document` shares a window with any evaluation text."""
        words = _words(document)
        for size, grams in self.windows.items():
            for start in range(len(words) - size + 1):
                if hash(tuple(words[start : start + size])) in grams:
                    return True
        return False
