"""Training the models of a pair: a target, its refinement, and the drafts distilled from it."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from specbench.config.options import ConfigError
from specbench.engine.reduced import ReducedHead
from specbench.pair.borrow import save_borrowing
from specbench.pair.spec import BUILTIN, resolve_path
from specbench.parts.heads.rounding import rounded_state
from specbench.train.card import write_training
from specbench.train.chats import ChatBatches, chat_facts
from specbench.train.common import (
    BUILTIN_FOLDER,
    Teacher,
    encoded_corpus,
    end_ids,
    facts_of,
    fit,
    identity_of,
    load_model,
    load_tokenizer,
)
from specbench.train.corpus.prepare import prepare
from specbench.train.corpus.sources import STREAMS
from specbench.train.corpus.tokenizer import save_tokenizer
from specbench.train.distill import distillation_loss, draft_from_layers, head_of
from specbench.train.loop import choose_device, compiled, use_autocast
from specbench.train.settings import PartSettings, Settings
from specbench.train.target import (
    device_of,
    heldout_loss,
    loss_by_position,
    new_llama,
    next_token_loss,
    save_model,
)
from specbench.train.tokens import PackedBatches, load_streams
from specbench.train.unlikelihood import LoopBatches, mix, refining_loss


def train_target(settings: Settings) -> dict[str, Any]:
    """Corpus, tokenizer, language model; returns the facts for the card."""
    options, part = settings.train, settings.chosen()
    folder, manifest = prepare(options, None, 0, "corpus")
    model = new_llama(options, part, manifest["vocab_size"])
    model.to(choose_device(options.device))  # type: ignore[arg-type]
    batches = PackedBatches(load_streams(folder, "train"), options.shares, options.seed)
    autocast = use_autocast(options.autocast, device_of(model))
    loss = compiled(partial(next_token_loss, model, autocast=autocast), model, options.compile)
    history, complete = fit(settings, settings.part, model, loss, batches)
    out = output_folder(settings, part)
    report = model_facts(settings, model, history, complete)
    if complete:
        save_model(model, out, options.mantissa_bits)
        save_tokenizer(Tokenizer.from_file(str(folder / "tokenizer.json")), out, options.max_positions)
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
    folder, prompts = encoded_corpus(options, tokenizer, end_ids(model, tokenizer)[0])
    length = part.length or options.length
    corpus = PackedBatches(load_streams(folder, "train"), options.shares, options.seed + 1)
    batches = LoopBatches(model, prompts, corpus, options.seed, options.generate_rows, length)
    autocast = use_autocast(options.autocast, device_of(model))
    refining = partial(refining_loss, model, strength=options.strength, autocast=autocast)
    history, complete = fit(settings, settings.part, model, compiled(refining, model, options.compile), batches)
    before = json.loads((source / "training.json").read_text()) if (source / "training.json").exists() else {}
    report = before | model_facts(settings, model, before.get("history", {}) or history, complete) | {"part": "target"}
    report["refined"] = history | {"repeated_share": batches.repeated_share, "strength": options.strength}
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


def train_draft(settings: Settings) -> dict[str, Any]:
    """Distil a draft (or a shallower target) from the pair's target; returns the facts for the card."""
    options, part = settings.train, settings.chosen()
    out = output_folder(settings, part)
    teacher = Teacher.of(settings)
    torch.manual_seed(options.seed)
    draft = initial_draft(settings, part, teacher.target).to(device_of(teacher.target))
    head = head_of(teacher.target)
    if teacher.ids is not None:
        head = borrow_from(teacher.target, draft, teacher.ids)
    distilling = partial(distillation_loss, draft, head, autocast=teacher.autocast)
    history, complete = fit(settings, settings.part, draft, compiled(distilling, draft, options.compile), teacher.batches)
    report = model_facts(settings, draft, history, complete)
    report |= {"distilled_from": settings.pair.target, "generated_rows": teacher.batches.generated, "own_text": part.own_text}
    if not complete:
        return report
    if teacher.ids is None:
        save_model(draft, out, options.mantissa_bits)
        teacher.tokenizer.save_pretrained(out)
    else:
        report["num_ids"] = len(teacher.ids)
        identity = identity_of(settings.pair, "target")
        assert identity is not None, "the target's files are on this machine"
        save_borrowing(draft, teacher.ids, identity, out, rounded_state(draft, options.mantissa_bits))
    if isinstance(teacher.batches, ChatBatches):
        report |= chat_facts(teacher.batches, teacher.folder)
        report |= heldout_chats(draft, head, teacher.ids, teacher.batches.heldout(*settings.batch_size))
    else:
        heldout = load_streams(teacher.folder, "heldout")
        report["heldout_loss"] = heldout_loss(draft, heldout, part.length or options.length)
    write_training(out, report)
    return report


def borrow_from(target: Any, draft: Any, ids: Tensor) -> nn.Module:
    """Give the draft the target's embeddings and, of its LM head, the rows of `ids`, both frozen; returns those rows as a head.

    So its logits, in training, are those of `ids` alone.
    """
    head = ReducedHead.of(target.get_output_embeddings(), ids).linear
    draft.set_input_embeddings(target.get_input_embeddings())
    draft.lm_head = head
    draft.get_input_embeddings().requires_grad_(False)
    return head


@torch.no_grad()
def heldout_chats(
    draft: Any, head: nn.Module, ids: Tensor | None, batches: Iterable[tuple[Tensor, Tensor, Tensor]]
) -> dict[str, Any]:
    """On held-out chats, text given: KL in nats, and the share of replies' tokens that the draft has on top."""
    loss, positions, right, count = 0.0, 0, 0, 0
    for text, hidden, judged in batches:
        positions += int(judged.sum())
        loss += float(distillation_loss(draft, head, text, hidden, judged)) * int(judged.sum())
        best = draft(input_ids=text.clamp(min=0), use_cache=False).logits.argmax(-1)
        guess = best if ids is None else ids.to(best.device)[best]
        seen = judged[:, :-1] & (text[:, 1:] >= 0)
        right += int(((guess[:, :-1] == text[:, 1:]) & seen).sum())
        count += int(seen.sum())
    return {"heldout_loss": {"own chats": loss / positions}, "heldout_right": right / count, "heldout_tokens": count}


def model_facts(settings: Settings, model: Any, history: dict[str, Any], complete: bool) -> dict[str, Any]:
    """The report of a whole model."""
    shape = (model.config.num_hidden_layers, model.config.hidden_size)
    return facts_of(settings, settings.part, model, shape, history, complete)


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
