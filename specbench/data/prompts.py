"""A sample's turn to prompt ids: which turns are generated, what stands before them, and in which template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from specbench.config.options import ConfigError, one_of
from specbench.config.schema import TEMPLATES
from specbench.data.samples import Sample, all_of

# Llama-3 templates write the date of the day into the system block, some from the clock: the same run would have other
# prompts tomorrow. Their own default date is passed instead; templates that do not use it ignore it.
TEMPLATE_DATE = "26 Jul 2024"


def turns_to_generate(sample: Sample, history: str) -> list[int]:
    """Indices of the turns whose replies are generated.

    baseline, own: all turns. dataset: the last only, the earlier replies being the data set's own (the protocol of AMUSD,
    arXiv 2410.17375, whose data are whole conversations). auto: as dataset where the sample has them, else as baseline.
    Raises ConfigError for `dataset` where replies are missing.
    """
    last = len(sample.turns) - 1
    if not _has_replies(sample) if history == "auto" else history != "dataset":
        return list(range(last + 1))
    if not _has_replies(sample):
        remedy = f"sample {sample.sample_id} has no replies of its own to its earlier turns; set data.history=baseline or own"
        raise ConfigError("data.history", history, remedy)
    return [last]


def _has_replies(sample: Sample) -> bool:
    """Whether all turns but the last have a reply of the set's own."""
    return all(turn.reference is not None for turn in sample.turns[:-1])


def history_replies(sample: Sample, turn: int, history: str, answers: Sequence[str]) -> tuple[str, ...]:
    """The `turn` assistant replies that stand before turn `turn` (counted from 0).

    dataset: the set's own replies. baseline, own: `answers`, the replies to turns 0, 1, ... that the caller kept, which must
    be those of the baseline's repeat 0 (so that both arms see the same prompts) or of the arm itself.
    """
    if history == "dataset" or (history == "auto" and _has_replies(sample)):
        replies = [one.reference for one in sample.turns[:turn] if one.reference is not None]
    else:
        replies = list(answers[:turn])
    if len(replies) != turn:
        raise ValueError(f"sample {sample.sample_id}, turn {turn}: {len(replies)} earlier replies at hand, {turn} needed")
    return tuple(replies)


def render(sample: Sample, turn: int, history: Sequence[str], tokenizer: Any, template: str) -> list[int]:
    """Prompt ids of turn `turn`, given the `turn` earlier assistant replies in `history`.

    raw: the plain text, with the special tokens that the tokenizer adds by itself (BOS for Llama). Text to be completed stands
        as it is; messages and replies are each followed by an empty line: "user\\n\\nreply\\n\\nuser\\n\\n".
    chat: the tokenizer's chat template with the generation prompt (it holds its own BOS); text to be completed is the user's
        message, word for word.
    amusd: the same without the generation prompt, the form of the published AMUSD code: the model writes the reply's header.
    auto: chat if the tokenizer has a chat template, else raw.

    Raises ConfigError when chat or amusd is asked of a tokenizer without a chat template.
    """
    assert len(history) == turn < len(sample.turns), "one reply for each earlier turn"
    has_chat = bool(getattr(tokenizer, "chat_template", None))
    if template == "raw" or (template == "auto" and not has_chat):
        return list(tokenizer(raw_text(sample, turn, history))["input_ids"])
    one_of("data.template", template, *TEMPLATES)
    if not has_chat:
        raise ConfigError("data.template", template, "the pair's tokenizer has no chat template; set data.template=raw or auto")
    messages = [{"role": "system", "content": sample.system}] if sample.system else []
    for index in range(turn):
        messages.append({"role": "user", "content": sample.turns[index].user})
        messages.append({"role": "assistant", "content": history[index]})
    messages.append({"role": "user", "content": sample.turns[turn].user})
    ids = tokenizer.apply_chat_template(
        messages,
        add_generation_prompt=template != "amusd",
        tokenize=True,
        return_dict=False,
        date_string=TEMPLATE_DATE,
    )
    return list(ids)


def first_prompts(samples: Sequence[Sample], history: str, tokenizer: Any, template: str) -> dict[str, list[int]]:
    """By sample, the ids of the first turn that is generated: all prompts that are known before anything ran.

    Raises ConfigError naming every sample that tokenizer and template cannot make a prompt of.
    """
    prompts, bad = {}, {}
    for sample in samples:
        turn = turns_to_generate(sample, history)[0]
        try:
            ids = render(sample, turn, history_replies(sample, turn, history, ()), tokenizer, template)
        except ConfigError:
            raise
        except Exception as error:  # a chat template is somebody's program, and may raise anything
            bad[sample.sample_id] = f"{type(error).__name__}: {error}"
            continue
        if not ids:
            bad[sample.sample_id] = "it has no token"
        prompts[sample.sample_id] = ids
    if bad:
        remedy = f"{len(bad)} of {len(samples)} samples cannot be made into a prompt: {all_of(bad)}"
        raise ConfigError("data.template", template, remedy)
    return prompts


def raw_text(sample: Sample, turn: int, history: Sequence[str]) -> str:
    """The raw template's text (see `render`)."""
    if sample.completion and turn == 0:
        return sample.turns[0].user
    parts = [sample.system] if sample.system else []
    for index in range(turn):
        parts += [sample.turns[index].user, history[index]]
    parts.append(sample.turns[turn].user)
    return "".join(part + "\n\n" for part in parts)


def too_long(prompt_ids: Sequence[int], max_prompt_tokens: int | None, context: int | None, max_new_tokens: int) -> bool:
    """Whether a sample must be skipped as `prompt_too_long`: above `data.max_prompt_tokens`, or prompt and reply together
    above the pair's context (both in tokens; None: no such limit).
    """
    if max_prompt_tokens is not None and len(prompt_ids) > max_prompt_tokens:
        return True
    return context is not None and len(prompt_ids) + max_new_tokens > context
