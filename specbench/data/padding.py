"""Unrelated text before a sample, up to a prompt of a given length: the same questions at any context length.

The text is the project's own: replies and questions of the stand-in sets other than the evaluated one, and the data cards. No
paragraph stands twice in a prompt, so that drafting from the prompt finds no more in it than the texts themselves repeat. Where
in the text a prompt begins is drawn from the sample's id: prompts do not share their beginning.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

from specbench.config.options import ConfigError
from specbench.config.paths import DATASETS_DIR
from specbench.config.schema import DataConfig
from specbench.data.load import load_standin, standin_names
from specbench.data.prompts import history_replies, render, turns_to_generate
from specbench.data.samples import Dataset, Sample

SLACK_TOKENS = 16  # how far below the asked length a prompt may end: texts are cut between words, and inside of longer ones


def padded(samples: tuple[Sample, ...], tokenizer: Any, config: DataConfig) -> tuple[Sample, ...]:
    """The samples with unrelated text before their first message, so that the first prompt has `data.context_tokens` ids.

    At most that many, and at most `SLACK_TOKENS` fewer; a prompt that is longer by itself stays as it is. Raises ConfigError
    where the text at hand does not reach.
    """
    assert config.context_tokens is not None
    text = filler(config.name)
    return tuple(_pad(sample, text, tokenizer, config, config.context_tokens) for sample in samples)


def named(dataset: Dataset, tokens: int) -> Dataset:
    """Under another name: padded prompts are not the published ones."""
    return dataclasses.replace(dataset, name=f"{dataset.name}-ctx{tokens}")


def filler(name: str) -> str:
    """All of the unrelated text for the set `name`, paragraphs apart by empty lines."""
    passages = [
        text
        for other in standin_names()
        if other != name
        for sample in load_standin(other).samples
        for turn in sample.turns
        for text in (turn.user, turn.reference)
        if text
    ]
    passages += [path.read_text(encoding="utf-8") for path in sorted(DATASETS_DIR.glob("*.md")) if path.stem != name]
    return "\n\n".join(dict.fromkeys(part for passage in passages for part in passage.strip().split("\n\n")))


def _pad(sample: Sample, text: str, tokenizer: Any, config: DataConfig, tokens: int) -> Sample:
    turn = turns_to_generate(sample, config.history)[0]
    replies = history_replies(sample, turn, config.history, ())

    def behind(before: str) -> Sample:
        first = dataclasses.replace(sample.turns[0], user=before + "\n\n" + sample.turns[0].user)
        return dataclasses.replace(sample, turns=(first, *sample.turns[1:]))

    def with_words(count: int) -> Sample:
        return behind(" ".join(words[:count]))

    def with_part(count: int) -> Sample:
        return behind(" ".join([*words[:low], words[low][:count]]))

    def most(with_some: Callable[[int], Sample], low: int, high: int) -> int:
        """How many fit, where `low` do and `high` do not."""
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if length(with_some(middle)) <= tokens else (low, middle)
        return low

    def length(made: Sample) -> int:
        return len(render(made, turn, replies, tokenizer, config.template))

    if length(sample) >= tokens:
        return sample
    words = text.split(" ")
    start = int.from_bytes(hashlib.sha256(sample.sample_id.encode()).digest()[:8], "big") % len(words)
    words = (words[start:] + words[:start])[:tokens]  # a word is a token at least
    if (reach := length(with_words(len(words)))) < tokens - SLACK_TOKENS:
        raise ConfigError("data.context_tokens", tokens, f"the unrelated text at hand makes prompts of {reach} tokens at most")
    low = most(with_words, 0, len(words))
    made = with_words(low) if low else sample
    if length(made) < tokens - SLACK_TOKENS:  # the next word is a long one: a checksum, an address
        part = most(with_part, 0, len(words[low]))
        made = with_part(part) if part else made
    return made
