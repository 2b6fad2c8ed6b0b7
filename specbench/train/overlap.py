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

import numpy as np

WORDS = re.compile(r"[A-Za-z0-9]+")
WINDOW_WORDS = 13
SHORTEST_WORDS = 8  # texts below this many words are too generic to identify a source
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no word of a window is lost


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
        found: dict[int, set[int]] = {}
        self.num_texts = 0
        for text in texts:
            words = _words(text)
            size = min(len(words), WINDOW_WORDS)
            if size < SHORTEST_WORDS:
                continue
            self.num_texts += 1
            found.setdefault(size, set()).update(_window_hashes(_hashes(words), size).tolist())
        self.windows = {size: np.sort(np.array(list(grams), dtype=np.uint64)) for size, grams in found.items()}

    def hits(self, document: str) -> bool:
        """Whether `document` shares a window with any evaluation text."""
        words = _hashes(_words(document))
        for size, grams in self.windows.items():
            windows = _window_hashes(words, size)
            if len(windows) and (grams[np.searchsorted(grams, windows).clip(max=len(grams) - 1)] == windows).any():
                return True
        return False


def _hashes(words: list[str]) -> np.ndarray:
    """One number per word, uint64; the same within one process."""
    return np.fromiter(map(hash, words), dtype=np.int64, count=len(words)).view(np.uint64)


def _window_hashes(words: np.ndarray, size: int) -> np.ndarray:
    """One number per window of `size` words, uint64, by Horner's rule modulo 2^64: a hundred million words pass in a minute."""
    count = len(words) - size + 1
    if count < 1:
        return np.zeros(0, dtype=np.uint64)
    windows = words[:count].copy()
    for offset in range(1, size):
        windows *= MULTIPLIER
        windows += words[offset : offset + count]
    return windows
