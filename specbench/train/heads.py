"""Training heads on a frozen target, and measuring them: `python -m specbench.train part=heads method=<name> pair=...`.

Which heads: the method's `heads_class`. On what: mostly text that the target writes itself, since that is what heads are asked
about (`distill.OwnTextBatches`). What stands in the card is measured on greedy text of the target after prompts from the
corpus's held-out part, which no evaluation set is in.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from specbench.config.options import ConfigError
from specbench.config.specs import ModelSpec
from specbench.pair.spec import resolve_path
from specbench.parts.heads.base import Heads, TargetParts, build_heads, save_heads
from specbench.parts.heads.files import builtin_folder, target_hash
from specbench.train.calibrate import calibrate, calibration_prompts, calibration_text
from specbench.train.common import end_ids, load_model, load_tokenizer, own_text_store, tokens_folder
from specbench.train.corpus.prepare import prepare
from specbench.train.distill import OwnTextBatches, check_head, prompt_texts
from specbench.train.heads_card import write_heads_card
from specbench.train.loop import Schedule, choose_device, train, use_autocast
from specbench.train.settings import PartSettings, Settings
from specbench.train.target import device_of
from specbench.train.tokens import PackedBatches, load_streams

MAX_CALIBRATION_ROWS = 256


def heads_class_of(method: Any, allow_targets: Sequence[str] = ()) -> type[Heads]:
    """The heads that a method's configuration node asks for. Raises ConfigError (method) when it has none."""
    from specbench.method import create_method

    if not method:
        raise ConfigError("method", None, "part=heads trains the heads of a method: write method=<name>, for instance medusa")
    cls = type(create_method(method, allow_targets)).heads_class
    if cls is None:
        raise ConfigError("method", method.get("_target_"), "has no heads to train")
    return cls


def heads_loss(heads: Heads, ids: Tensor, hidden: Tensor, autocast: bool) -> Tensor:
    """The family's own loss, with bfloat16 products under `autocast`; ids (rows, length), hidden (rows, length, width)."""
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=autocast):
        return heads.loss(ids, hidden if autocast else hidden.float())


def train_heads(settings: Settings) -> dict[str, Any]:
    """Train one family's heads for the pair's target; returns the facts for the card.

    Raises ConfigError for a method without heads and an option that they do not take, ValueError for a target that scales or
    caps its logits.
    """
    options, part, pair = settings.train, settings.chosen(), settings.pair
    cls = heads_class_of(settings.method, settings.allow_targets)
    out = output_folder(settings, cls)
    path = resolve_path(pair.target)
    target = load_model(path, pair.target_revision, pair.trust_remote_code).to(choose_device(options.device))
    check_head(target)
    autocast = use_autocast(options.autocast, device_of(target))
    spec = ModelSpec("target", pair.target, path, "float32", "cpu", pair.target_revision, "sdpa", pair.trust_remote_code)
    tokenizer = load_tokenizer(pair)
    eos_ids = end_ids(target, tokenizer)
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    folder, _ = prepare(options, backend, eos_ids[0], tokens_folder(options, backend))
    torch.manual_seed(options.seed)
    heads = build_heads(cls, TargetParts.of(target, target_hash(spec)), settings.heads)
    heads.to(heads.target.device)
    length = part.length or options.length
    prompts = [e.ids for e in backend.encode_batch_fast(prompt_texts(folder), add_special_tokens=False)]
    batches = OwnTextBatches(
        target,
        prompts,
        PackedBatches(load_streams(folder, "train"), options.shares, options.seed),
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
    name = f"heads_{cls.family}"
    checkpoint = Path(options.work) / name / "checkpoint.pt"
    loss = partial(heads_loss, heads, autocast=autocast)
    history, complete = train(heads, loss, batches, schedule_of(settings, part), checkpoint, options.resume, name)
    report = {
        "part": name,
        "family": cls.family,
        "command": f"python -m specbench.train part={settings.part} method={settings.method_name} pair=<pair>",
        "complete": complete,
        "layers": heads.max_depth,
        "width": heads.target.width,
        "parameters": sum(p.numel() for p in heads.parameters()),
        "options": heads.options,
        "history": vars(history),
        "heldout_loss": None,
        "seed": options.seed,
        "distilled_from": pair.target,
        "target_sha256": heads.target.sha256,
        "own_text": part.own_text,
        "generated_rows": batches.generated,
    }
    if complete:
        rows = min(4 * options.generate_rows, MAX_CALIBRATION_ROWS)
        source, arrays = calibration_prompts(folder)
        ids = calibration_text(target, arrays, rows, options.new_tokens, eos_ids, options.seed)
        heads.calibration = calibrate(heads, target, ids) | {"prompts": source}
        report["heldout_loss"] = {"own greedy text": heads.calibration["loss"]}
        report["calibration"] = heads.calibration
        save_heads(heads, out, options.mantissa_bits)
        write_heads_card(out, report)
    return report


def schedule_of(settings: Settings, part: PartSettings) -> Schedule:
    """The budget and rates of a part, falling along a cosine."""
    options = settings.train
    return Schedule(
        tokens=part.tokens,
        rows=part.rows or options.rows,
        length=part.length or options.length,
        matrix_lr=options.matrix_lr * part.rate,
        other_lr=options.other_lr * part.rate,
        shape="cosine",
    )


def output_folder(settings: Settings, cls: type[Heads]) -> Path:
    """`train.out`, or the built-in pair's heads of the family. Raises ConfigError when another target would overwrite those."""
    if settings.train.out:
        return Path(settings.train.out)
    if settings.pair.target != "builtin:target":
        raise ConfigError("train.out", None, f"name a folder for the heads of {settings.pair.target}")
    return builtin_folder(cls.family)
