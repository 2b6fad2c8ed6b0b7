"""The training text: Python source, docstrings and documentation found on the machine under permissive licences.

Three streams, mixed by fixed shares while training: `functions` (functions that have a docstring, dedented, gathered by
file), `code` (whole modules) and `docs` (documentation files, package descriptions and longer docstrings as prose).
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
import sysconfig
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from specbench.train.corpus.licences import Package, permissive_distributions
from specbench.train.overlap import OverlapFilter

STREAMS = ("functions", "code", "docs")
SKIPPED_FOLDERS = frozenset(
    ["tests", "test", "testing", "_vendor", "vendor", "idlelib", "lib2to3", "site-packages", "__pycache__"]
)
SKIPPED_NAMES = re.compile(
    r"^(licen[cs]e|copying|notice|authors|record|top_level|entry_points|sources|requirements|test_)", re.I
)
MAX_FILE_BYTES = 200_000
MIN_FUNCTION_CHARS, MAX_FUNCTION_CHARS = 150, 3_000
MIN_PROSE_CHARS = 250
TYPING_NAMES = ("List", "Dict", "Tuple", "Optional", "Any", "Union", "Iterable", "Sequence", "Set", "Callable")


@dataclass(frozen=True)
class Document:
    """One text of one stream; `split` is train, heldout or prompts."""

    package: str
    path: str
    stream: str
    split: str
    text: str


@dataclass
class Corpus:
    """Documents in a fixed order, and what was taken from where."""

    documents: list[Document]
    packages: dict[str, Package]
    removed_for_overlap: list[str] = field(default_factory=list)
    num_evaluation_texts: int = 0
    evaluation_files: list[str] = field(default_factory=list)

    def select(self, stream: str, split: str) -> list[Document]:
        """The documents of one stream and split, in corpus order."""
        return [d for d in self.documents if d.stream == stream and d.split == split]


def split_of(path: str) -> str:
    """The split of a file, from a hash of its path alone: 1 % heldout, 3 % prompts, the rest train."""
    bucket = int.from_bytes(hashlib.sha256(path.encode()).digest()[:4], "big") % 100
    return "heldout" if bucket == 0 else "prompts" if bucket <= 3 else "train"


def machine_files(max_package_bytes: int) -> Iterator[tuple[Package, str, str]]:
    """(package, path inside it, text) of the standard library and all permissively licensed packages, in a fixed order.

    Files of one package are taken in hash order up to `max_package_bytes`, so that no single package rules the mix.
    """
    version = ".".join(map(str, sys.version_info[:3]))
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    yield from _limited(
        Package("python-standard-library", version, "PSF-2.0"), stdlib, stdlib.rglob("*"), max_package_bytes * 4
    )
    for package, dist in permissive_distributions():
        description = dist.metadata.get_payload()  # type: ignore[attr-defined]
        if isinstance(description, str) and len(description) >= MIN_PROSE_CHARS:
            yield package, f"{package.name}/DESCRIPTION.md", description
        root = Path(str(dist.locate_file("")))
        yield from _limited(package, root, (Path(str(dist.locate_file(f))) for f in dist.files or []), max_package_bytes)


def folder_files(folder: Path, licence: str) -> Iterator[tuple[Package, str, str]]:
    """(package, path, text) of a user's own folder, whose licence the user states."""
    yield from _limited(Package(folder.name, "", licence), folder, folder.rglob("*"), sys.maxsize)


def _limited(package: Package, root: Path, files: Iterator[Path], limit_bytes: int) -> Iterator[tuple[Package, str, str]]:
    wanted = []
    for file in files:
        try:
            inside = file.resolve().relative_to(root.resolve()).as_posix()
        except ValueError:
            continue  # scripts and data that a package puts outside its root
        parts = inside.split("/")
        if file.suffix not in (".py", ".md", ".rst", ".txt") or SKIPPED_FOLDERS & set(parts) or SKIPPED_NAMES.match(parts[-1]):
            continue
        if any(".dist-info" in part or ".egg-info" in part for part in parts):
            continue
        wanted.append((hashlib.sha256(inside.encode()).digest(), inside, file))
    taken = 0
    for _, inside, file in sorted(wanted):
        if not file.is_file() or not 200 <= file.stat().st_size <= MAX_FILE_BYTES:
            continue
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if sum(c > "\x7f" for c in text) > 0.02 * len(text) or len(text) > 120 * (text.count("\n") + 1):
            continue  # tables of other alphabets, generated data
        taken += len(text)
        if taken > limit_bytes:
            return
        yield package, f"{package.name}/{inside}", text


def documents_of(package: Package, path: str, text: str) -> Iterator[Document]:
    """The documents of one file: for Python its module, its documented functions and its longer docstrings."""
    split = split_of(path)
    if not path.endswith(".py"):
        yield Document(package.name, path, "docs", split, text.strip() + "\n")
        return
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return
    yield Document(package.name, path, "code", split, text)
    functions: list[str] = []
    prose: list[str] = []
    lines = text.splitlines(keepends=True)
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)):
            continue
        docstring = ast.get_docstring(node)
        if docstring and len(docstring) >= MIN_PROSE_CHARS:
            prose.append(docstring)
        if docstring and isinstance(node, ast.FunctionDef) and len(node.body) > 1:
            source = textwrap.dedent("".join(lines[node.lineno - 1 : node.end_lineno]))
            if MIN_FUNCTION_CHARS <= len(source) <= MAX_FUNCTION_CHARS:
                functions.append(source.strip("\n"))
    if functions:
        joined = "\n\n\n".join(functions) + "\n"
        used = [name for name in TYPING_NAMES if re.search(rf"\b{name}\[", joined)]
        head = f"from typing import {', '.join(used)}\n\n\n" if used else ""
        yield Document(package.name, path, "functions", split, head + joined)
    if prose:
        yield Document(package.name, path, "docs", split, "\n\n".join(prose) + "\n")


def gather(files: Iterator[tuple[Package, str, str]], overlap: OverlapFilter) -> Corpus:
    """The corpus of `files`: without repeated texts and without documents that overlap an evaluation set."""
    corpus = Corpus([], {}, num_evaluation_texts=overlap.num_texts)
    seen: set[bytes] = set()
    for package, path, text in files:
        for document in documents_of(package, path, text.replace("\r\n", "\n")):
            key = hashlib.sha256((document.stream + " ".join(document.text.split())).encode()).digest()
            if key in seen:
                continue
            seen.add(key)
            if overlap.hits(document.text):
                corpus.removed_for_overlap.append(f"{document.path} ({document.stream})")
                continue
            corpus.documents.append(document)
            corpus.packages[package.name] = package
    return corpus
