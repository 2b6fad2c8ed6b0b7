"""A data configuration to a list of samples, and a sample to prompt ids.

`load` finds and verifies the file (local, Hub, or the project's stand-in), `select` takes the evaluated samples and
`warmup_samples` prompts outside them, `turns_to_generate`, `history_replies` and `render` turn a sample into the token ids of
one turn, and `prompt_warnings` says what was changed on the way. Nothing here imports torch, transformers or hydra, and
Hugging Face `datasets` for a set of the Hub alone.
"""

from specbench.data.faithful import prompt_warnings
from specbench.data.load import load
from specbench.data.prompts import first_prompts, history_replies, render, too_long, turns_to_generate
from specbench.data.samples import Dataset, Sample, Turn
from specbench.data.select import select, warmup_samples

__all__ = [
    "Dataset",
    "Sample",
    "Turn",
    "first_prompts",
    "history_replies",
    "load",
    "prompt_warnings",
    "render",
    "select",
    "too_long",
    "turns_to_generate",
    "warmup_samples",
]
