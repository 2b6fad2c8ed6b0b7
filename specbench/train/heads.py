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
from torch import Tensor

from specbench.config.options import ConfigError
from specbench.parts.heads.base import Heads, TargetParts, build_heads
from specbench.parts.heads.files import builtin_folder
from specbench.parts.heads.stored import save_heads
from specbench.train.calibrate import calibrate, calibration_prompts, calibration_text, judge_heads
from specbench.train.card import write_training
from specbench.train.chats import HELDOUT, ChatBatches, chat_facts
from specbench.train.common import Teacher, facts_of, fit, identity_of
from specbench.train.settings import Settings

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


def heads_loss(heads: Heads, ids: Tensor, hidden: Tensor, _judged: Tensor | None = None, autocast: bool = False) -> Tensor:
    """The family's own loss, with bfloat16 products under `autocast`; ids (rows, length), hidden (rows, length, width)."""
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=autocast):
        return heads.loss(ids, hidden.bfloat16() if autocast else hidden.float())


def train_heads(settings: Settings) -> dict[str, Any]:
    """Train one family's heads for the pair's target; returns the facts for the card.

    Raises ConfigError for a method without heads and an option that they do not take, ValueError for a target that scales or
    caps its logits.
    """
    options, pair = settings.train, settings.pair
    cls = heads_class_of(settings.method, settings.allow_targets)
    out = output_folder(settings, cls)
    teacher = Teacher.of(settings)
    torch.manual_seed(options.seed)
    parts = TargetParts.of(teacher.target, identity_of(pair, "target"))
    heads = build_heads(cls, parts if teacher.ids is None else parts.over(teacher.ids), settings.heads or {})
    heads.to(heads.target.device)
    name = f"heads_{cls.family}"
    loss = partial(heads_loss, heads, autocast=teacher.autocast)
    history, complete = fit(settings, name, heads, loss, teacher.batches)
    allowed = f" allow_targets=[{','.join(settings.allow_targets)}]" if settings.allow_targets else ""
    report = facts_of(settings, name, heads, (heads.max_depth, heads.target.width), history, complete) | {
        "family": cls.family,
        "command": f"python -m specbench.train part={settings.part} method={settings.method_name} pair=<pair>{allowed}",
        "options": heads.options,
        "distilled_from": pair.target,
        "target_sha256": heads.target.sha256,
        "own_text": settings.chosen().own_text,
        "generated_rows": teacher.batches.generated,
    }
    if teacher.ids is not None:
        report["num_ids"] = len(teacher.ids)
    if isinstance(teacher.batches, ChatBatches):
        report |= chat_facts(teacher.batches, teacher.folder)
    if complete:
        heads.calibration = own_calibration(settings, heads, teacher)
        report["heldout_loss"] = {"own text": heads.calibration["loss"]}
        report["calibration"] = heads.calibration
        save_heads(heads, out, options.mantissa_bits)
        write_training(out, report)
    return report


def own_calibration(settings: Settings, heads: Heads, teacher: Teacher) -> dict[str, Any]:
    """What the heads are worth on text of the target that nothing was trained on."""
    options, batches = settings.train, teacher.batches
    if isinstance(batches, ChatBatches):
        held = batches.heldout(*settings.batch_size)
        text = f"replies of at most {options.new_tokens} tokens, at temperatures {options.temperatures}"
        return judge_heads(heads, held) | {"text": text, "prompts": HELDOUT}
    rows = min(4 * options.generate_rows, MAX_CALIBRATION_ROWS)
    source, arrays = calibration_prompts(teacher.folder)
    ids = calibration_text(teacher.target, arrays, rows, options.new_tokens, teacher.eos_ids, options.seed)
    return calibrate(heads, teacher.target, ids) | {"prompts": source}


def output_folder(settings: Settings, cls: type[Heads]) -> Path:
    """`train.out`, or the built-in pair's heads of the family. Raises ConfigError when another target would overwrite those."""
    if settings.train.out:
        return Path(settings.train.out)
    if settings.pair.target != "builtin:target":
        raise ConfigError("train.out", None, f"name a folder for the heads of {settings.pair.target}")
    return builtin_folder(cls.family)
