"""What every part of a training shares: the pair's models and tokenizer, its end ids, where its work lies."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from specbench.config.options import ConfigError
from specbench.config.paths import MODELS_DIR
from specbench.config.schema import PairConfig
from specbench.pair.spec import resolve_path
from specbench.train.loop import Schedule
from specbench.train.settings import PartSettings, TrainSettings
from specbench.train.target import device_of

BUILTIN_FOLDER = MODELS_DIR / "builtin"


def schedule_of(settings: TrainSettings, part: PartSettings) -> Schedule:
    """The training loop's schedule of a part."""
    return Schedule(
        tokens=part.tokens,
        rows=part.rows or settings.rows,
        length=part.length or settings.length,
        long_share=settings.long_share if part.kind == "target" else 0.0,
        matrix_lr=settings.matrix_lr * part.rate,
        other_lr=settings.other_lr * part.rate,
        decay=settings.decay,
    )


def load_model(path: str, revision: str | None, trust_remote_code: bool) -> nn.Module:
    """A causal language model in float32, frozen."""
    model = AutoModelForCausalLM.from_pretrained(
        path, revision=revision, trust_remote_code=trust_remote_code, dtype=torch.float32
    )
    return model.eval().requires_grad_(False)


def load_tokenizer(pair: PairConfig) -> PreTrainedTokenizerFast:
    """The target's tokenizer. Raises ConfigError when it has no fast version, which the corpus is encoded with."""
    path = resolve_path(pair.target)
    tokenizer = AutoTokenizer.from_pretrained(path, revision=pair.target_revision, trust_remote_code=pair.trust_remote_code)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ConfigError("pair.target", pair.target, "its tokenizer has no fast version, which the corpus is encoded with")
    return tokenizer


def end_ids(target: nn.Module, tokenizer: Any) -> list[int]:
    """The target's end-of-text ids, from its generation config or its tokenizer."""
    found = getattr(getattr(target, "generation_config", None), "eos_token_id", None)
    ids = found if isinstance(found, list) else [found if found is not None else tokenizer.eos_token_id]
    if ids[0] is None:
        raise ConfigError("pair.target", tokenizer.name_or_path, "it names no end-of-text token")
    return [int(i) for i in ids]


def own_text_store(options: TrainSettings, target: nn.Module, length: int, prompts: list[list[int]]) -> Path:
    """The work folder of the text that a target writes, by everything that this text depends on."""
    digest = hashlib.sha256(json.dumps([options.seed, length, options.temperatures, device_of(target).type, prompts]).encode())
    for value in target.state_dict().values():
        digest.update(value.detach().float().cpu().numpy().tobytes())
    return Path(options.work) / f"own-text-{digest.hexdigest()[:8]}"


def tokens_folder(options: TrainSettings, tokenizer: Tokenizer) -> str:
    """The work folder of a tokenizer's arrays: `corpus` for the tokenizer that was trained there, else named by its hash."""
    own = Path(options.work) / "corpus" / "tokenizer.json"
    key = fingerprint(tokenizer)
    return "corpus" if own.exists() and fingerprint(Tokenizer.from_file(str(own))) == key else f"corpus-{key}"


def fingerprint(tokenizer: Tokenizer) -> str:
    """Eight digits that stand for a tokenizer's vocabulary and merges (decoration such as truncation settings left out)."""
    model = json.loads(tokenizer.to_str())["model"]
    text = json.dumps([model.get("vocab"), model.get("merges")])
    return hashlib.sha256(text.encode()).hexdigest()[:8]
