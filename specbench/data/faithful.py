"""What a tokenizer or a chat template does to prompts that nobody asked for, said in one line a kind.

Prompts are what transformers' own pipelines would feed (`prompts.render`), and those keep silent where a text is changed on its
way, a beginning is doubled or missing, an end is appended, or a user's text is read as control tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from specbench.data.samples import Sample


def prompt_warnings(
    samples: Sequence[Sample], prompts: Mapping[str, Sequence[int]], tokenizer: Any, template: str
) -> list[str]:
    """Warnings about the first prompts of the samples, rendered with this template."""
    prompts = {sample.sample_id: prompts[sample.sample_id] for sample in samples}
    is_chat = template != "raw" and bool(getattr(tokenizer, "chat_template", None))
    begin, end = own_tokens(tokenizer)
    bos = tokenizer.bos_token_id
    doubled = [name for name, ids in prompts.items() if bos is not None and list(ids[:2]) == [bos, bos]]
    headless = [name for name, ids in prompts.items() if is_chat and bos in begin and bos not in ids]
    ended = [] if is_chat or not end else list(prompts)
    control = {token for token in tokenizer.all_special_tokens if len(token) > 1}
    controlled = [s.sample_id for s in samples if any(token in turn.user for turn in s.turns for token in control)]
    changed = [s.sample_id for s in samples if s.sample_id not in controlled and not _comes_back(s, prompts, tokenizer)]

    def named(ids: Sequence[int]) -> str:
        return " ".join(tokenizer.convert_ids_to_tokens(list(ids)))

    kinds = [
        (doubled, f"begin with {tokenizer.bos_token} twice: the text, or the template, has one that the tokenizer adds again"),
        (headless, f"have no {tokenizer.bos_token}, which the tokenizer puts before plain text: the chat template writes none"),
        (ended, f"end with {named(end)}, which the tokenizer appends: the model goes on behind an end"),
        (controlled, "hold text that the tokenizer reads as control tokens"),
        (changed, "do not hold their text as it is: the tokenizer or the chat template changed or dropped a part of it"),
    ]
    return [f"{len(odd)} of {len(prompts)} prompts ({odd[0]}{', ...' * (len(odd) > 1)}) {what}" for odd, what in kinds if odd]


def own_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What a tokenizer puts before and behind a plain text by itself."""
    bare, whole = (list(tokenizer("a", add_special_tokens=special).input_ids) for special in (False, True))
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    return [], []


def _comes_back(sample: Sample, prompts: Mapping[str, Sequence[int]], tokenizer: Any) -> bool:
    """Whether the first user text stands in the decoded prompt, blanks aside: templates trim, tokenizers begin with a blank."""
    decoded = tokenizer.decode(list(prompts[sample.sample_id]), clean_up_tokenization_spaces=False)
    return "".join(sample.turns[0].user.split()) in "".join(decoded.split())
