"""Corpus and tokenizer of one training folder: made once, found again by every later part."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from specbench.config.options import ConfigError
from specbench.config.paths import DATASETS_DIR
from specbench.train.corpus import sources as corpora
from specbench.train.corpus.tokenizer import train_tokenizer
from specbench.train.overlap import OverlapFilter, evaluation_files, evaluation_texts
from specbench.train.settings import TrainSettings
from specbench.train.tokens import write_tokens

TOKENIZER_CHARS = 20_000_000  # the tokenizer sees a sample of at most this size


def evaluation_folders(settings: TrainSettings) -> list[Path]:
    """Where evaluation sets are looked for: the user's folders, SPECBENCH_DATA and the stand-in sets."""
    folders = [Path(folder) for folder in settings.evaluation_folders]
    if os.environ.get("SPECBENCH_DATA"):
        folders.append(Path(os.environ["SPECBENCH_DATA"]))
    return [*folders, DATASETS_DIR / "standin"]


def gather_corpus(settings: TrainSettings) -> tuple[corpora.Corpus, OverlapFilter]:
    """The corpus that `train.source` names, without evaluation texts, and what knows those.

    Prints what was compared and removed.
    """
    files = evaluation_files(evaluation_folders(settings))
    print(f"overlap check against {', '.join(f.name for f in files) or 'no evaluation file: none was found'}")
    overlap = OverlapFilter(text for file in files for text in evaluation_texts(file))
    if settings.source == "machine":
        found = corpora.machine_files(settings.max_package_bytes)
    else:
        folder = Path(settings.source)
        if not folder.is_dir():
            raise ConfigError("train.source", settings.source, "give an existing folder, or machine")
        if not settings.source_licence:
            raise ConfigError("train.source_licence", "", "state the licence of the folder's texts")
        found = corpora.folder_files(folder, settings.source_licence)
    corpus = corpora.gather(found, overlap)
    corpus.evaluation_files = [file.name for file in files]
    if not corpus.documents:
        raise ConfigError("train.source", settings.source, "no usable .py, .md, .rst or .txt file of 200 bytes or more in it")
    print(f"{len(corpus.documents)} documents, {len(corpus.removed_for_overlap)} removed for overlap with an evaluation set")
    return corpus, overlap


def prepare(settings: TrainSettings, tokenizer: Tokenizer | None, eos_id: int, name: str) -> tuple[Path, dict[str, Any]]:
    """Folder of token arrays under ``train.work/<name>`` and its manifest; an earlier one is used again.

    Without a `tokenizer` one is trained on a sample of the corpus and stands beside the arrays as ``tokenizer.json``.
    """
    folder = Path(settings.work) / name
    if (folder / "manifest.json").exists():
        return folder, json.loads((folder / "manifest.json").read_text())
    corpus, _ = gather_corpus(settings)
    if tokenizer is None:
        tokenizer = train_tokenizer(_sample(corpus, settings.seed), settings.vocab_size)
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(folder / "tokenizer.json"))
    return folder, write_tokens(corpus, tokenizer, folder, settings.seed, eos_id)


def _sample(corpus: corpora.Corpus, seed: int) -> Iterator[str]:
    chars = 0
    for stream in corpora.STREAMS:
        documents = corpus.select(stream, "train")
        for i in np.random.default_rng([seed, 99]).permutation(len(documents)):
            text = documents[i].text
            chars += len(text)
            yield text
            if chars > TOKENIZER_CHARS / len(corpora.STREAMS):
                chars = 0
                break
        chars = 0
