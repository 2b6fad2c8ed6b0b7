"""Chat prompts made on this machine: forms filled with drawn words, and with functions and prose of the corpus.

Nothing of an evaluation set is in them: the forms are this project's own (``forms/chat.yaml``), the corpus is what
`corpus.sources` lets through, and a prompt that shares a window of 13 words with an evaluation text is dropped.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from specbench.train.corpus.sources import Corpus
from specbench.train.overlap import OverlapFilter

FORMS = Path(__file__).parents[1] / "forms" / "chat.yaml"
FIELD = re.compile(r"\{([a-z]+)(?:_\d)?\}")
MAX_CODE_CHARS, MAX_PARAGRAPH_CHARS = 700, 800
SPLITS = ("prompts", "heldout")


def chat_prompts(corpus: Corpus, overlap: OverlapFilter, count: int, seed: int) -> list[str]:
    """`count` different user messages, by the seed alone; fewer where the corpus is small."""
    forms = yaml.safe_load(FORMS.read_text(encoding="utf-8"))
    draw = np.random.default_rng([seed, 21])
    pieces = pieces_of(corpus)
    kinds = list(forms["shares"])
    shares = np.array([forms["shares"][kind] for kind in kinds])
    made: dict[str, None] = {}
    for _ in range(4 * count):
        kind = kinds[draw.choice(len(kinds), p=shares / shares.sum())]
        text = fill(str(draw.choice(forms["forms"][kind])), forms["words"] | pieces, draw)
        if text is not None and not overlap.hits(text):
            made[text + forms["after"].get(kind, "")] = None
        if len(made) == count:
            break
    return list(made)


def fill(form: str, words: dict[str, list[Any]], draw: np.random.Generator) -> str | None:
    """The form with every field drawn, equal fields alike, numbered ones different; None where the corpus has no such piece."""
    values: dict[str, str] = {}
    for field in FIELD.finditer(form):
        if field[0] in values:
            continue
        if field[1] in ("n", "m"):
            values[field[0]] = str(int(draw.integers(2, 25) if field[1] == "n" else draw.integers(5, 60) * 10))
            continue
        left = [word for word in words[field[1]] if word not in values.values()] if "_" in field[0] else words[field[1]]
        if not left:
            return None
        values[field[0]] = str(left[int(draw.integers(len(left)))])
    return FIELD.sub(lambda field: values[field[0]], form)


def pieces_of(corpus: Corpus) -> dict[str, list[str]]:
    """What forms take from the corpus: functions up to their docstrings, short whole functions, paragraphs of prose."""
    functions: list[str] = []
    code: list[str] = []
    paragraphs: list[str] = []
    for document in corpus.documents:
        if document.stream == "functions":
            for head, whole in _functions(document.text):
                functions.append(head)
                code.append(whole)
        elif document.stream == "docs":
            paragraphs += [part for part in re.split(r"\n\s*\n", document.text) if _is_prose(part)]
    return {"function": functions, "code": code, "paragraph": paragraphs}


def _functions(text: str) -> Iterator[tuple[str, str]]:
    """(signature and docstring, whole source) of each short function of a text."""
    lines = text.splitlines(keepends=True)
    for node in ast.parse(text).body:
        if not isinstance(node, ast.FunctionDef) or node.decorator_list or len(node.body) < 2:
            continue
        head = "".join(lines[node.lineno - 1 : node.body[0].end_lineno])
        whole = "".join(lines[node.lineno - 1 : node.end_lineno])
        if "self" not in head.split(":")[0] and len(whole) <= 2 * MAX_CODE_CHARS and len(head) <= MAX_CODE_CHARS:
            yield head, whole[:MAX_CODE_CHARS]


def _is_prose(part: str) -> bool:
    words = sum(c.isalpha() or c.isspace() for c in part)
    return 200 <= len(part) <= MAX_PARAGRAPH_CHARS and words > 0.92 * len(part) and not part.startswith((" ", "\t"))
