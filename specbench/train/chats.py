"""What a chat model writes after chat prompts, with its last hidden states: written once, kept, trained on often.

Blocks of `generate_rows` chats are written one after another until `chat_tokens` are there. A block is three arrays: all its
tokens, the LM head's input at each of them (float16, read through a memory map), and where its chats begin. So a training step
needs no forward of the target: its LM head on the kept states is its distribution.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from specbench.measure.records.jsonfile import write_atomically
from specbench.train.corpus.chat import chat_prompts
from specbench.train.corpus.prepare import gather_corpus
from specbench.train.replies import replies, writer_of
from specbench.train.settings import TrainSettings

HELDOUT = "chats that nothing was trained on"
HELDOUT_EVERY = 25  # every 25th chat is one that nothing is trained on
WINDOW = 8  # blocks whose prompts are sorted by length, so that those of a block need little padding
PROMPT_TOKENS = (16, 224)


@dataclass
class Chats:
    """All blocks of a store, row by row: ids [length], hidden [length, width], and where the reply begins."""

    ids: list[np.ndarray]
    hidden: list[np.ndarray]
    replies: list[int]

    @classmethod
    def read(cls, folder: Path) -> Chats:
        """Raises ValueError where there are none."""
        made = cls([], [], [])
        for file in sorted(folder.glob("*.rows.npy")):
            ids = np.load(file.with_name(file.name.replace(".rows.", ".ids.")))
            hidden = np.load(file.with_name(file.name.replace(".rows.", ".hidden.")), mmap_mode="r")
            for start, end, reply in np.load(file):
                made.ids.append(ids[start:end])
                made.hidden.append(hidden[start:end])
                made.replies.append(int(reply))
        if not made.ids:
            raise ValueError(f"{folder} holds no chats")
        return made

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def tokens(self) -> int:
        """Of all rows, prompts and replies."""
        return sum(map(len, self.ids))

    def rows(self, heldout: bool) -> list[int]:
        """Rows to train on, or those held out."""
        return [row for row in range(len(self)) if (row % HELDOUT_EVERY == 0) == heldout]

    def counts(self, num_ids: int) -> Tensor:
        """How often each id stands in the replies to train on, int64 [num_ids]."""
        replies = [self.ids[row][self.replies[row] :] for row in self.rows(heldout=False)]
        return torch.bincount(torch.from_numpy(np.concatenate(replies).astype(np.int64)), minlength=num_ids)

    def batch(self, rows: list[int], context: int | None, length: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """ids int64 [rows, longest], -1 behind a row's end; hidden [rows, longest, width]; judged, bool [rows, longest].

        A row has at most `length` tokens, and at most `context` of them are prompt (None: all of it). judged: the positions
        whose next token is the reply's.
        """
        cuts = [0 if context is None else max(self.replies[row] - context, 0) for row in rows]
        sizes = [min(len(self.ids[row]) - cut, length) for row, cut in zip(rows, cuts, strict=True)]
        ids = torch.full((len(rows), max(sizes)), -1)
        hidden = torch.zeros(len(rows), max(sizes), self.hidden[rows[0]].shape[1], dtype=torch.float16)
        judged = torch.zeros(ids.shape, dtype=torch.bool)
        for place, (row, cut, size) in enumerate(zip(rows, cuts, sizes, strict=True)):
            ids[place, :size] = torch.from_numpy(self.ids[row][cut : cut + size].astype(np.int64))
            hidden[place, :size] = torch.from_numpy(np.array(self.hidden[row][cut : cut + size]))
            judged[place, self.replies[row] - cut - 1 : size] = True
        return ids.to(device), hidden.to(device), judged.to(device)


def chat_folder(options: TrainSettings, target_sha256: str) -> Path:
    """The work folder of a target's chats, by all that they depend on."""
    names = ("seed", "temperatures", "new_tokens", "generate_rows", "chat_prompts", "max_package_bytes")
    key = json.dumps([target_sha256, *(getattr(options, name) for name in names)])
    return Path(options.work) / f"chats-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def write_chats(options: TrainSettings, target: Any, tokenizer: Any, eos_ids: list[int], folder: Path, autocast: bool) -> Chats:
    """The target's chats, `chat_tokens` tokens or more (at most one per prompt): those in `folder`, and what is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    done = Chats.read(folder).tokens if any(folder.glob("*.rows.npy")) else 0
    if done < options.chat_tokens:
        prompts, writer = prompt_ids(options, tokenizer, folder), writer_of(target, autocast)
        device = next(target.parameters()).device
        bar = tqdm(total=options.chat_tokens, initial=done, unit="tok", unit_scale=True, desc="chats", mininterval=5)
        for number, first in enumerate(range(0, len(prompts), options.generate_rows)):
            if (folder / f"{number:04d}.rows.npy").exists():
                continue
            draw = np.random.default_rng([options.seed, 22, number])
            chosen = prompts[first : first + options.generate_rows]
            temperatures = torch.from_numpy(draw.choice(options.temperatures, len(chosen))).float().to(device)
            generator = torch.Generator(device).manual_seed(int(draw.integers(0, 2**62)))
            written = replies(writer, chosen, options.new_tokens, temperatures, generator, set(eos_ids))
            size = _keep(folder, number, chosen, written)
            done += size
            bar.update(size)
            if done >= options.chat_tokens:
                break
        bar.close()
    return Chats.read(folder)


def _keep(folder: Path, number: int, prompts: list[list[int]], written: list[tuple[list[int], Tensor]]) -> int:
    ids = [np.array(row, dtype=np.int32) for row, _ in written]
    ends = np.cumsum([len(row) for row in ids])
    rows = np.stack([ends - [len(row) for row in ids], ends, [len(prompt) for prompt in prompts]], axis=1)
    hidden = np.concatenate([states.cpu().to(torch.float16).numpy() for _, states in written])
    for name, array in (
        ("ids", np.concatenate(ids)),
        ("hidden", hidden),
        ("rows", rows),
    ):  # rows last: they say that it is whole
        part = folder / f"{number:04d}.{name}.{os.getpid()}.part"
        with open(part, "wb") as out:
            np.save(out, array)
        os.replace(part, folder / f"{number:04d}.{name}.npy")
    return int(ends[-1])


def prompt_ids(options: TrainSettings, tokenizer: Any, folder: Path) -> list[list[int]]:
    """The chat prompts in the target's ids, through its chat template; the texts are kept in the folder, with their sources."""
    file = folder / "prompts.jsonl"
    if not file.exists():
        corpus, overlap = gather_corpus(options)
        texts = chat_prompts(corpus, overlap, options.chat_prompts, options.seed)
        packages = [vars(package) for package in corpus.packages.values()]
        (folder / "sources.json").write_text(json.dumps(packages, indent=1) + "\n")
        write_atomically(file, "".join(json.dumps({"text": text}) + "\n" for text in texts))
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines():
        message = [{"role": "user", "content": json.loads(line)["text"]}]
        rows.append(list(tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)))
    rows = [row for row in rows if PROMPT_TOKENS[0] <= len(row) <= PROMPT_TOKENS[1]]
    size = WINDOW * options.generate_rows
    return [row for first in range(0, len(rows), size) for row in sorted(rows[first : first + size], key=len)]


class ChatBatches:
    """Batches of training chats; every epoch has each of them once. context: prompt tokens kept of a row (None: all)."""

    def __init__(self, chats: Chats, context: int | None, seed: int, device: torch.device):
        self.chats, self.context, self.seed, self.device = chats, context, seed, device
        self.step = 0
        self._order: Iterator[list[int]] | None = None

    @property
    def generated(self) -> int:
        """Chats that there are to train on."""
        return len(self.chats.rows(heldout=False))

    def next(self, rows: int, length: int) -> tuple[Tensor, ...]:
        """See `Chats.batch`."""
        if self._order is None:
            self._order = neighbours(self.chats, self.chats.rows(heldout=False), rows, self.seed)
            for _ in range(self.step):
                next(self._order)
        self.step += 1
        return self.chats.batch(next(self._order), self.context, length, self.device)

    def heldout(self, rows: int, length: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The chats that nothing is trained on, once."""
        held = self.chats.rows(heldout=True)
        for first in range(0, len(held), rows):
            yield self.chats.batch(held[first : first + rows], self.context, length, self.device)

    def state_dict(self) -> dict[str, Any]:
        """The position."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a position that `state_dict` gave."""
        self.step, self._order = int(state["step"]), None


def neighbours(chats: Chats, rows: list[int], size: int, seed: int) -> Iterator[list[int]]:
    """Batches of `size` rows of about one length, for ever: every epoch in an order of its own, every row once in it."""
    epoch = 0
    while True:
        draw = np.random.default_rng([seed, 23, epoch])
        lengths = np.array([len(chats.ids[row]) for row in rows]) + draw.uniform(0, 24, len(rows))
        order = [rows[i] for i in np.argsort(lengths)]
        batches = [order[i : i + size] for i in range(0, len(order), size)]
        yield from (batches[i] for i in draw.permutation(len(batches)))
        epoch += 1


def chat_facts(batches: ChatBatches, folder: Path) -> dict[str, Any]:
    """What a draft or heads were trained on, for their cards."""
    sources = json.loads((folder / "sources.json").read_text())
    return {
        "own_text": 1.0,
        "chats": len(batches.chats),
        "chat_tokens": batches.chats.tokens,
        "sources": [f"{source['name']} {source['version']} ({source['licence']})" for source in sources],
    }
