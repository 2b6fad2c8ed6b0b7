"""A data configuration to a list of samples, and a sample to prompt ids.

`load` finds and verifies the file (local, Hub, or the project's stand-in), `select` takes the evaluated samples and
`warmup_samples` prompts outside them, `turns_to_generate`, `history_replies` and `render` turn a sample into the token ids of
one turn, `padded` sets unrelated text before samples, `prompt_warnings` says what was changed on the way, and `is_right`
grades a reply. Nothing here imports torch, transformers or hydra, and Hugging Face `datasets` for a set of the Hub alone.
"""

from specbench.data.faithful import prompt_warnings
from specbench.data.grade import is_right
from specbench.data.load import load
from specbench.data.padding import named, padded
from specbench.data.prompts import first_prompts, history_replies, render, too_long, turns_to_generate
from specbench.data.samples import Dataset, Sample, Turn
from specbench.data.select import select, warmup_samples

__all__ = [
    "Dataset",
    "Sample",
    "Turn",
    "first_prompts",
    "history_replies",
    "is_right",
    "load",
    "named",
    "padded",
    "prompt_warnings",
    "render",
    "select",
    "too_long",
    "turns_to_generate",
    "warmup_samples",
]
