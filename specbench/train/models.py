"""Training the models of a pair: a target, its refinement, and the drafts distilled from it."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from specbench.config.options import ConfigError
from specbench.pair.spec import BUILTIN, resolve_path
from specbench.train.card import write_training
from specbench.train.common import (
    BUILTIN_FOLDER,
    end_ids,
    load_model,
    load_tokenizer,
    own_text_store,
    schedule_of,
    tokens_folder,
)
from specbench.train.corpus.prepare import prepare
from specbench.train.corpus.sources import STREAMS
from specbench.train.corpus.tokenizer import save_tokenizer
from specbench.train.distill import OwnTextBatches, check_head, distillation_loss, draft_from_layers, head_of, prompt_texts
from specbench.train.loop import choose_device, compiled, train, use_autocast
from specbench.train.settings import PartSettings, Settings
from specbench.train.target import device_of, heldout_loss, loss_by_position, new_llama, next_token_loss, save_model
from specbench.train.tokens import PackedBatches, load_streams
from specbench.train.unlikelihood import LoopBatches, mix, refining_loss


def train_target(settings: Settings) -> dict[str, Any]:
    """Corpus, tokenizer, language model; returns the facts for the card."""
    options, part = settings.train, settings.chosen()
    folder, manifest = prepare(options, None, 0, "corpus")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = new_llama(options, part, manifest["vocab_size"])
    model.to(choose_device(options.device))  # type: ignore[arg-type]
    batches = PackedBatches(load_streams(folder, "train"), options.shares, options.seed)
    autocast = use_autocast(options.autocast, device_of(model))
    loss = compiled(partial(next_token_loss, model, autocast=autocast), model, options.compile)
    checkpoint = Path(options.work) / settings.part / "checkpoint.pt"
    history, complete = train(model, loss, batches, schedule_of(options, part), checkpoint, options.resume, settings.part)
    out = output_folder(settings, part)
    if complete:
        save_model(model, out, options.mantissa_bits)
        save_tokenizer(tokenizer, out, options.max_positions)
    report = facts_of(settings, model, vars(history), complete)
    if complete:
        heldout = load_streams(folder, "heldout")
        report["heldout_loss"] = heldout_loss(model, heldout, options.length)
        report["loss_by_position"] = loss_by_position(model, heldout["code"])
        kept = ("packages", "tokens", "num_evaluation_texts", "evaluation_files", "removed_for_overlap")
        report |= {"shares": options.shares, "streams": list(STREAMS)} | {name: manifest[name] for name in kept}
        write_training(out, report)
    return report


def refine_target(settings: Settings) -> dict[str, Any]:
    """Teach the pair's target not to repeat itself; the refined target takes the place of the part's folder."""
    options, part, pair = settings.train, settings.chosen(), settings.pair
    out = output_folder(settings, part)
    source = Path(resolve_path(pair.target))
    model = load_model(str(source), pair.target_revision, pair.trust_remote_code).requires_grad_(True)
    model.to(choose_device(options.device))
    unrefined = copy.deepcopy(model).requires_grad_(False)
    tokenizer = load_tokenizer(pair)
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    folder, _ = prepare(options, backend, end_ids(model, tokenizer)[0], tokens_folder(options, backend))
    length = part.length or options.length
    prompts = [e.ids for e in backend.encode_batch_fast(prompt_texts(folder), add_special_tokens=False)]
    corpus = PackedBatches(load_streams(folder, "train"), options.shares, options.seed + 1)
    batches = LoopBatches(model, prompts, corpus, options.seed, options.generate_rows, length)
    autocast = use_autocast(options.autocast, device_of(model))
    refining = partial(refining_loss, model, strength=options.strength, autocast=autocast)
    loss = compiled(refining, model, options.compile)
    checkpoint = Path(options.work) / settings.part / "checkpoint.pt"
    history, complete = train(model, loss, batches, schedule_of(options, part), checkpoint, options.resume, settings.part)
    before = json.loads((source / "training.json").read_text()) if (source / "training.json").exists() else {}
    report = before | facts_of(settings, model, before.get("history", {}) or vars(history), complete) | {"part": "target"}
    report["refined"] = vars(history) | {"repeated_share": batches.repeated_share, "strength": options.strength}
    if complete:
        heldout = load_streams(folder, "heldout")
        report["refined"]["heldout_loss_before"] = heldout_loss(unrefined, heldout, length)
        report["refined"]["mixed_back"] = options.mixed_back
        mix(model, unrefined, options.mixed_back)
        report["heldout_loss"] = heldout_loss(model, heldout, length)
        report["loss_by_position"] = loss_by_position(model, heldout["code"])
        save_model(model, out, options.mantissa_bits)
        tokenizer.save_pretrained(out)
        write_training(out, report)
    return report


def facts_of(settings: Settings, model: Any, history: dict[str, Any], complete: bool) -> dict[str, Any]:
    """What every part's report says."""
    config = model.config
    return {
        "part": settings.part,
        "complete": complete,
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "parameters": sum(p.numel() for p in model.parameters()),
        "history": history,
        "heldout_loss": None,
        "seed": settings.train.seed,
    }


def train_draft(settings: Settings) -> dict[str, Any]:
    """Distil a draft (or a shallower target) from the pair's target; returns the facts for the card."""
    options, part, pair = settings.train, settings.chosen(), settings.pair
    out = output_folder(settings, part)
    target_path = resolve_path(pair.target)
    target = load_model(target_path, pair.target_revision, pair.trust_remote_code).to(choose_device(options.device))
    check_head(target)
    autocast = use_autocast(options.autocast, device_of(target))
    tokenizer = load_tokenizer(pair)
    eos_ids = end_ids(target, tokenizer)
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    folder, _ = prepare(options, backend, eos_ids[0], tokens_folder(options, backend))
    torch.manual_seed(options.seed)
    draft = initial_draft(settings, part, target).to(device_of(target))
    length = part.length or options.length
    prompts = [e.ids for e in backend.encode_batch_fast(prompt_texts(folder), add_special_tokens=False)]
    corpus = PackedBatches(load_streams(folder, "train"), options.shares, options.seed)
    batches = OwnTextBatches(
        target,
        prompts,
        corpus,
        part.own_text,
        length,
        options.temperatures,
        eos_ids,
        options.seed,
        options.generate_rows,
        options.pool_rows,
        options.reuse,
        autocast,
        own_text_store(options, target, length, prompts),
    )
    loss = compiled(partial(distillation_loss, draft, head_of(target), autocast=autocast), draft, options.compile)
    checkpoint = Path(options.work) / settings.part / "checkpoint.pt"
    history, complete = train(draft, loss, batches, schedule_of(options, part), checkpoint, options.resume, settings.part)
    if complete:
        save_model(draft, out, options.mantissa_bits)
        tokenizer.save_pretrained(out)
    report = facts_of(settings, draft, vars(history), complete)
    report |= {"distilled_from": pair.target, "generated_rows": batches.generated, "own_text": part.own_text}
    if complete:
        report["heldout_loss"] = heldout_loss(draft, load_streams(folder, "heldout"), length)
        write_training(out, report)
    return report


def initial_draft(settings: Settings, part: PartSettings, target: Any) -> nn.Module:
    """The draft's first weights: layers of the target, the pair's own draft, or new ones (a Llama of the part's width).

    Raises ConfigError for an unknown `train.init`.
    """
    pair, init = settings.pair, part.init or settings.train.init
    if init == "auto":
        init = "draft" if pair.draft and not pair.draft.startswith(BUILTIN) else "layers"
    if init == "draft" and pair.draft:
        draft = load_model(resolve_path(pair.draft, "draft"), pair.draft_revision, pair.trust_remote_code)
    elif init == "layers":
        draft = draft_from_layers(target, part.layers, part.copy_layers)
    elif init == "new":
        draft = new_llama(settings.train, part, target.config.vocab_size)
    else:
        raise ConfigError("train.init", init, "choose auto, layers, new, or draft with a pair.draft")
    return draft.requires_grad_(True)


def output_folder(settings: Settings, part: PartSettings) -> Path:
    """`train.out`, or the part's place in the built-in pair. Raises ConfigError when another pair would overwrite that."""
    if settings.train.out:
        return Path(settings.train.out)
    if not settings.pair.target.startswith("builtin:"):
        raise ConfigError("train.out", None, f"name a folder for the trained part of pair {settings.pair.target}")
    return BUILTIN_FOLDER / part.folder
