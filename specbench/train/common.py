"""What every part of a training shares: the pair's models and tokenizer, its end ids, where its work lies."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from specbench.config.options import ConfigError
from specbench.config.paths import MODELS_DIR
from specbench.config.schema import PairConfig
from specbench.config.specs import ModelSpec
from specbench.engine.reduced import frequent_ids
from specbench.pair.spec import resolve_path, specify
from specbench.parts.heads.files import target_hash
from specbench.train.chats import ChatBatches, chat_folder, write_chats
from specbench.train.corpus.prepare import prepare
from specbench.train.distill import OwnTextBatches, check_head, prompt_texts
from specbench.train.loop import BatchSource, LossFunction, Schedule, choose_device, train, use_autocast
from specbench.train.rounded import rounded
from specbench.train.settings import FOUR_BITS, Settings, TrainSettings
from specbench.train.target import device_of
from specbench.train.tokens import PackedBatches, load_streams

PROMPT_TOKENS_OF_HEADS = 48  # of a chat, before its reply: heads look at the last hidden state, EAGLE a little further back
BUILTIN_FOLDER = MODELS_DIR / "builtin"


@dataclass
class Teacher:
    """The pair's target, frozen, and batches of text for whatever is distilled from it."""

    target: Any
    tokenizer: PreTrainedTokenizerFast
    eos_ids: list[int]
    folder: Path  # the corpus in the tokenizer's ids
    batches: OwnTextBatches | ChatBatches
    autocast: bool
    ids: Tensor | None = None  # those that the part guesses among, None for all

    @classmethod
    def of(cls, settings: Settings) -> Teacher:
        """Raises ValueError for a target that scales or caps its logits."""
        options, part, pair = settings.train, settings.chosen(), settings.pair
        target = load_model(resolve_path(pair.target), pair.target_revision, pair.trust_remote_code)
        target.to(choose_device(options.device))
        check_head(target)
        autocast = use_autocast(options.autocast, device_of(target))
        tokenizer = load_tokenizer(pair)
        eos_ids = end_ids(target, tokenizer)
        if options.text == "chat":
            identity = target_hash(specify(pair).target)
            folder = chat_folder(options, str(identity))
            chats = write_chats(options, target, tokenizer, eos_ids, folder, autocast)
            ids = frequent_ids(chats.counts(len(tokenizer)), part.num_ids) if part.num_ids else None
            context = PROMPT_TOKENS_OF_HEADS if part.kind == "heads" else None
            batches = ChatBatches(chats, context, options.seed, device_of(target))
            return cls(target, tokenizer, eos_ids, folder, batches, autocast, ids)
        folder, prompts = encoded_corpus(options, tokenizer, eos_ids[0])
        corpus = PackedBatches(load_streams(folder, "train"), options.shares, options.seed)
        store = own_text_store(options, target, part.length or options.length, prompts)
        own_text = OwnTextBatches(target, prompts, corpus, options, part, eos_ids, autocast, store)
        return cls(target, tokenizer, eos_ids, folder, own_text, autocast)


def encoded_corpus(options: TrainSettings, tokenizer: Any, eos_id: int) -> tuple[Path, list[list[int]]]:
    """The folder of the corpus in a tokenizer's ids, and the prompts that a model's own text begins with."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    folder, _ = prepare(options, backend, eos_id, tokens_folder(options, backend))
    return folder, [e.ids for e in backend.encode_batch_fast(prompt_texts(folder), add_special_tokens=False)]


def fit(
    settings: Settings, name: str, model: nn.Module, loss: LossFunction, batches: BatchSource
) -> tuple[dict[str, Any], bool]:
    """Train by the chosen part's schedule, checkpoints in the work folder `name`: the history, and whether it was all of it."""
    options, part = settings.train, settings.chosen()
    rows, length = settings.batch_size
    schedule = Schedule(
        tokens=part.tokens,
        rows=rows,
        length=length,
        long_share=options.long_share if part.kind == "target" else 0.0,
        matrix_lr=options.matrix_lr * part.rate,
        other_lr=options.other_lr * part.rate,
        decay=options.decay,
        optimizer=options.optimizer,
        shape="cosine" if part.kind in ("heads", "acceptance_head") else "plateau",
    )
    checkpoint = Path(options.work) / name / "checkpoint.pt"
    with rounded(model) if options.weight_bits == FOUR_BITS else contextlib.nullcontext():
        history, complete = train(model, loss, batches, schedule, checkpoint, options.resume, name)
    return vars(history), complete


def facts_of(
    settings: Settings, name: str, model: nn.Module, shape: tuple[int, int], history: dict[str, Any], complete: bool
) -> dict[str, Any]:
    """What every part's report says; shape: layers and width."""
    return {
        "part": name,
        "complete": complete,
        "layers": shape[0],
        "width": shape[1],
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "history": history,
        "heldout_loss": None,
        "weight_bits": settings.train.weight_bits,
        "seed": settings.train.seed,
    }


def identity_of(pair: PairConfig, role: str) -> str | None:
    """Which weights the pair's target or draft (`role`) has: see `heads.files.target_hash`."""
    name, revision = getattr(pair, role), getattr(pair, f"{role}_revision")
    path = resolve_path(name, role)
    return target_hash(ModelSpec(role, name, path, "float32", "cpu", revision, "sdpa", pair.trust_remote_code))


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
