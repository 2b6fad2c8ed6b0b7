"""The corpus as token arrays on disk, and batches drawn from them in an order that depends on the seed alone."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from torch import Tensor, from_numpy

from specbench.config.options import ConfigError
from specbench.train.corpus.sources import STREAMS, Corpus

SPLITS = ("train", "heldout", "prompts")


def write_tokens(corpus: Corpus, tokenizer: Tokenizer, folder: Path, seed: int, eos_id: int) -> dict[str, Any]:
    """Encode every stream and split into ``<stream>.<split>.npy`` (uint16, eos between documents) and ``manifest.json``.

    The documents of a stream are shuffled once, by `seed`. Returns the manifest: packages with licence and tokens by stream,
    evaluation texts compared, documents removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    by_package: defaultdict[str, Counter[str]] = defaultdict(Counter)
    totals: dict[str, int] = {}
    for number, stream in enumerate(STREAMS):
        for split in SPLITS:
            documents = corpus.select(stream, split)
            order = np.random.default_rng([seed, number]).permutation(len(documents))
            encodings = tokenizer.encode_batch_fast([documents[i].text for i in order], add_special_tokens=False)
            pieces: list[np.ndarray] = []
            for i, encoding in zip(order, encodings, strict=True):
                pieces.append(np.array([*encoding.ids, eos_id], dtype=np.uint32))
                if split == "train":
                    by_package[documents[i].package][stream] += len(pieces[-1])
            array = np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.uint32)
            np.save(folder / f"{stream}.{split}.npy", array)
            totals[f"{stream}.{split}"] = len(array)
    manifest = {
        "packages": [
            dataclasses.asdict(package) | {"train_tokens": by_package.get(name, {})}
            for name, package in sorted(corpus.packages.items(), key=lambda item: item[0].lower())
        ],
        "tokens": totals,
        "num_evaluation_texts": corpus.num_evaluation_texts,
        "removed_for_overlap": corpus.removed_for_overlap,
        "evaluation_files": corpus.evaluation_files,
        "vocab_size": tokenizer.get_vocab_size(),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    with open(folder / "prompts.jsonl", "w", encoding="utf-8") as out:
        for stream in STREAMS:
            for document in corpus.select(stream, "prompts"):
                out.write(json.dumps({"stream": stream, "path": document.path, "text": document.text}) + "\n")
    return manifest


class PackedBatches:
    """Batches of packed sequences from several token streams.

    Row by row, a stream is drawn by `shares` from a generator keyed by (seed, step), and the row is that stream's next
    `length` tokens; a stream that is used up starts again. The state is the step and one cursor per stream, so that training
    resumes at the exact token where it stopped.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], shares: Mapping[str, float], seed: int):
        usable = {name: array for name, array in arrays.items() if len(array) and shares.get(name, 0) > 0}
        if not usable:
            remedy = f"none of the streams {sorted(arrays)} has tokens; give a larger corpus"
            raise ConfigError("train.shares", dict(shares), remedy)
        self.names = sorted(usable)
        self.arrays = usable
        total = sum(shares[name] for name in self.names)
        self.probabilities = [shares[name] / total for name in self.names]
        self.seed, self.step = seed, 0
        self.cursors = dict.fromkeys(self.names, 0)

    def next(self, rows: int, length: int) -> Tensor:
        """Token ids, int64 (rows, length)."""
        choice = np.random.default_rng([self.seed, self.step]).choice(len(self.names), size=rows, p=self.probabilities)
        self.step += 1
        batch = np.empty((rows, length), dtype=np.int64)
        for row, number in enumerate(choice):
            name = self.names[number]
            array, cursor = self.arrays[name], self.cursors[name]
            batch[row] = array[np.arange(cursor, cursor + length) % len(array)]
            self.cursors[name] = (cursor + length) % len(array)
        return from_numpy(batch)

    def state_dict(self) -> dict[str, Any]:
        """The position in the data."""
        return {"step": self.step, "cursors": dict(self.cursors)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at a position that `state_dict` gave."""
        self.step, self.cursors = int(state["step"]), dict(state["cursors"])


def load_streams(folder: Path, split: str) -> dict[str, np.ndarray]:
    """The token arrays of one split by stream."""
    return {stream: np.load(folder / f"{stream}.{split}.npy") for stream in STREAMS}
