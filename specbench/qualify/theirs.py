"""transformers' own ways to decode greedily: plain, on a static cache, that compiled, and assisted by a draft."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from transformers import CompileConfig, GenerationConfig

NO_PADDING = 1_000_000  # no id of a token: assisted generation masks padding out of its draft's prompt


def generate(
    target: Any,
    tokens: int,
    ends: Collection[int] = (),
    *,
    draft: Any = None,
    draft_length: int = 0,
    static_length: int | None = None,
    compiled: bool = False,
) -> Callable[[Sequence[int]], list[int]]:
    """A prompt to its continuation of at most `tokens` ids, by the `generate` of a transformers module.

    draft, draft_length: assisted, every draft of that length. static_length: positions of a preallocated cache; compiled: with
    its one-row forward compiled.
    """
    options: dict[str, Any] = {"eos_token_id": sorted(ends) or None, "pad_token_id": NO_PADDING}
    if static_length is not None:
        options |= {"cache_implementation": "static", "max_length": static_length, "disable_compile": not compiled}
        if compiled:
            config: Any = CompileConfig(fullgraph=False, mode="default")
            config._compile_all_devices = True  # else a CPU is left out
            options["compile_config"] = config
    settings = GenerationConfig(max_new_tokens=tokens, do_sample=False, **options)
    more = {}
    if draft is not None:
        # The draft length is read from the draft's own settings; an argument to `generate` is ignored.
        draft.generation_config = GenerationConfig(
            num_assistant_tokens=draft_length,
            num_assistant_tokens_schedule="constant",
            assistant_confidence_threshold=0.0,
            pad_token_id=NO_PADDING,
        )
        more["assistant_model"] = draft

    @torch.inference_mode()
    def decode(prompt: Sequence[int]) -> list[int]:
        ids = torch.tensor([list(prompt)], device=target.device)
        out = target.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings, **more)
        return out[0, len(prompt) :].tolist()

    return decode
