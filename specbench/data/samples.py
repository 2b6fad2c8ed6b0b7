"""What a data set is made of, and how the rows of the known formats become samples.

The fields of a row tell its format, so a further set needs a YAML and a file, no code:

- HumanEval: `task_id`, `prompt` (text to be completed);
- questions: `question_id`, `category`, `turns` (a list of user texts; some copies call it `prompt`);
- conversations: `conversation_id`, `conversation` (a list of `{role, content}`, user and assistant in turn);
- requests: `messages` (the same, a system message may come first), or `prompt` (one message);
- problems: any fields, where the set's YAML says in `text` how they become a message.

Rows of all but HumanEval and conversations may lack an id: their number in the file, counted from 0, is it. A row's `answer`,
or the field that the YAML names, is what replies are graded against.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Turn:
    """One user message. `reference` is the data set's own assistant reply to it, where the set holds whole conversations."""

    user: str
    reference: str | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt with all its turns. `completion`: the text is code to be continued, not a message to be answered."""

    sample_id: str
    category: str | None
    turns: tuple[Turn, ...]
    completion: bool = False
    system: str | None = None  # the system message, where the set brings one
    answer: str | None = None  # the set's reference answer to the last turn, for `grade`


@dataclass(frozen=True, slots=True)
class Dataset:
    """Samples and where they came from.

    name: the configured name if the content is the published set, `<name>-custom` for a variant or a file that nothing
        published vouches for, `<name>-standin` for the project's own set.
    source: path | hub | standin. file: the file that was read. sha256: of its bytes, as read.
    content_sha256: of the samples (see `content_digest`); the same set gives the same sum in every container.
    revision: the Hub's commit for source=hub, else None.
    """

    name: str
    source: str
    samples: tuple[Sample, ...]
    sha256: str
    content_sha256: str
    file: str
    revision: str | None = None
    warnings: tuple[str, ...] = ()


def parse(
    rows: Sequence[Mapping[str, Any]], where: str, text: str = "", answer: str = "", masked: str = ""
) -> tuple[Sample, ...]:
    """Rows of one file to samples, in file order. text, answer, masked: see `DataConfig`.

    Raises ValueError naming `where` and all bad rows (counted from 1) for unknown formats, missing or ill-typed fields,
    repeated ids and an empty file.
    """
    samples: list[Sample] = []
    seen: dict[str, int] = {}
    bad: dict[str, str] = {}  # by row, what is wrong with it
    for number, row in enumerate(rows, start=1):
        try:
            sample = _parse_row(row, number - 1, text, answer or "answer")
            if masked and any(masked in turn.user for turn in sample.turns):
                raise ValueError("the text is masked: the published file leaves it to each user to fetch it from its source")
            if sample.sample_id in seen:
                raise ValueError(f"id {sample.sample_id!r} was already used in row {seen[sample.sample_id]}")
        except (KeyError, TypeError, ValueError) as error:
            bad[f"row {number}"] = f"field {error} is missing" if isinstance(error, KeyError) else str(error)
            continue
        seen[sample.sample_id] = number
        samples.append(sample)
    if bad:
        raise ValueError(f"{where}, {all_of(bad)}")
    if not samples:
        raise ValueError(f"{where}: no rows")
    return tuple(samples)


def all_of(bad: Mapping[str, str]) -> str:
    """Everything that is bad in one line, by what is wrong with it: `row 3, row 7: 'turns' is empty; row 9: ...`."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in bad.items():
        by_reason.setdefault(" ".join(reason.split())[:300], []).append(name)
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in by_reason.items())


def content_digest(samples: Iterable[Sample]) -> str:
    """sha256 over one JSON line per sample: id, category, completion, [[user, reference], ...] and a system message where
    there is one; order counts. Reference answers do not: the same prompts with and without them are the same set."""
    digest = hashlib.sha256()
    for sample in samples:
        turns = [[turn.user, turn.reference] for turn in sample.turns]
        facts = [sample.sample_id, sample.category, sample.completion, turns, *([sample.system] if sample.system else [])]
        line = json.dumps(facts, ensure_ascii=True)
        digest.update(line.encode("ascii") + b"\n")
    return digest.hexdigest()


def _parse_row(row: Mapping[str, Any], number: int, text: str, answer: str) -> Sample:
    """number: the id of a row that has none. A field that is null counts as missing: parquet has one for every row."""
    row = {key: value for key, value in row.items() if value is not None}
    if "conversation" in row:
        return Sample(_id(row, "conversation_id"), None, _conversation(row["conversation"]))
    if "task_id" in row and isinstance(row.get("prompt"), str) and not text:
        return Sample(_id(row, "task_id"), None, (Turn(_text(row["prompt"], "prompt")),), completion=True)
    named = _id(row, "question_id") if "question_id" in row else str(number)
    category = _text(row["category"], "category") if "category" in row else None
    return Sample(named, category, _turns(row, text), system=_system(row), answer=_answer(row.get(answer)))


def _turns(row: Mapping[str, Any], text: str) -> tuple[Turn, ...]:
    if "messages" in row:
        messages = row["messages"]
        return _conversation(messages[1:] if _system(row) else messages, "messages")
    found = next((key for key in ("turns", "prompt") if key in row), None)
    if isinstance(row.get("prompt"), str) and found == "prompt" and not text:
        return (Turn(_text(row["prompt"], "prompt")),)
    if found and isinstance(row[found], list):
        if not row[found]:
            raise ValueError("'turns' is empty")
        return tuple(Turn(_text(one, "turns")) for one in row[found])
    if not text:
        known = "'task_id' + 'prompt', 'turns', 'conversation', 'messages', 'prompt'"
        raise ValueError(f"unknown format; fields are {sorted(row)}, known are {known}")
    return (Turn(re.sub(r"\{(\w+)\}", lambda field: _text(row[field[1]], field[1]), text)),)


def _system(row: Mapping[str, Any]) -> str | None:
    messages = row.get("messages")
    if isinstance(messages, list) and messages and messages[0]["role"] == "system":
        return _text(messages[0]["content"], "content")
    return None


def _answer(value: Any) -> str | None:
    """GSM8K's answers end in `#### 18`."""
    return None if value is None else str(value).rpartition("####")[2].strip() or None


def _conversation(messages: Any, key: str = "conversation") -> tuple[Turn, ...]:
    """Pairs of user and assistant; the last assistant reply may be missing."""
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{key!r} is not a list of messages")
    roles = [message["role"] for message in messages]
    expected = ["user" if index % 2 == 0 else "assistant" for index in range(len(roles))]
    if roles != expected:
        raise ValueError(f"roles do not alternate from 'user': {roles}")
    texts = [_text(message["content"], "content") for message in messages]
    replies: list[str | None] = [*texts[1::2]]
    if len(texts) % 2:
        replies.append(None)
    return tuple(Turn(user, reply) for user, reply in zip(texts[0::2], replies, strict=True))


def _id(row: Mapping[str, Any], key: str) -> str:
    value = row[key]
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise ValueError(f"{key!r} is not an id: {value!r}")
    return _text(str(value), key)


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key!r} holds {_short(value)}, not a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # half a character of UTF-16: JSON can say it, a tokenizer cannot read it
        raise ValueError(f"{key!r} holds {value[error.start]!a} at character {error.start}, which is no character") from error
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
