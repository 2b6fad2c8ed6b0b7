"""What a pair's draft and heads keep of the target's own text, by position, on the data sets: `part=acceptance pair=<pair>`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from specbench.config.paths import CONF_DIR
from specbench.engine.model import Model
from specbench.engine.target import open_session
from specbench.measure.theory import recorded
from specbench.pair.backend import choose_backend
from specbench.pair.load import check_pair, load_model, load_tokenizer
from specbench.pair.spec import specify
from specbench.parts.heads.base import Heads, TargetParts
from specbench.parts.heads.files import shipped_for, target_hash
from specbench.parts.heads.stored import load_heads
from specbench.train.calibrate import judge_heads
from specbench.train.card import write_acceptance
from specbench.train.common import end_ids
from specbench.train.evaluate import DEPTH, greedy_text, matches, prompts_of
from specbench.train.heads import heads_class_of
from specbench.train.settings import Settings

FAMILIES = ("eagle", "hydra", "medusa")
DATASETS = ("humaneval", "mt_bench", "gsm8k", "math500", "mbpp", "specbench")


def measure_acceptance(settings: Settings) -> dict[str, Any]:
    """Greedy text of the target after `card_samples` prompts of each set, `new_tokens` each; written to `train.out` as a card.

    A chain's share at depth k: the text's rounds begun anywhere, the first k guesses all right. Heads: `judge_heads`.
    """
    options = settings.train
    pair = specify(settings.pair)
    tokenizer = load_tokenizer(pair.target)
    pair, _ = choose_backend(check_pair(pair, tokenizer), "auto")
    target = load_model(pair.target, pair.vocab_size)
    draft = load_model(pair.draft, pair.draft_vocab_size) if pair.draft is not None else None
    identity = target_hash(pair.target)
    parts = TargetParts.of(target.module, identity)
    heads: dict[str, Heads] = {}
    for family in FAMILIES:
        folder = shipped_for(family, identity)
        if folder is not None:
            method: Any = OmegaConf.load(CONF_DIR / "method" / f"{family}.yaml")
            heads[family] = load_heads(heads_class_of({"_target_": method["_target_"]}), folder, parts)
    ends = set(end_ids(target.module, tokenizer))
    facts: dict[str, Any] = {"new_tokens": options.new_tokens, "data": {}}
    for name in DATASETS:
        dataset, prompts = prompts_of(name, tokenizer, options.card_samples, target.context_length or 0, options.new_tokens)
        texts = [(ids, greedy_text(target, ids, options.new_tokens, ends)) for ids in prompts]
        rows: dict[str, list[float]] = {}
        if draft is not None:
            right = [matches(draft, prompt, written) for prompt, written in texts]
            rows["chain draft"] = recorded.acceptance_by_position(right, DEPTH)
        states = [_states(target, prompt, written) for prompt, written in texts]
        rows |= {family: judge_heads(made, states)["acceptance_by_depth"] for family, made in heads.items()}
        tokens = sum(len(written) for _, written in texts)
        facts["data"][name] = {"name": dataset.name, "prompts": len(texts), "tokens": tokens, "accepted": rows}
    return {"part": "acceptance", "card": str(write_acceptance(Path(options.out or options.work), facts)), **facts}


@torch.inference_mode()
def _states(target: Model, prompt: list[int], written: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A text as `judge_heads` takes it: ids, the LM head's inputs, and the positions that a round may begin at."""
    session = open_session(target, taps=(-1,))
    ids = [*prompt, *written]
    session.start(len(ids))
    hidden = session.prefill(ids).taps[-1]
    judged = torch.arange(len(ids))[None] >= len(prompt) - 1
    return torch.tensor([ids]), hidden[None], judged
