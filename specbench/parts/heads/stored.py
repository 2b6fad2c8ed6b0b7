"""Heads in a folder: written by training, looked up before a run, opened for a method."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from specbench.config.options import ConfigError
from specbench.engine import blocks
from specbench.parts.described import read_description
from specbench.parts.heads.base import AnyHeads, Heads, TargetParts, TreeHeads, build_heads
from specbench.parts.heads.files import KEY, find_heads, target_hash
from specbench.parts.heads.rounding import BFLOAT16_MANTISSA_BITS, rounded_state

if TYPE_CHECKING:
    from specbench.config.specs import ModelSpec
    from specbench.engine.runtime import Runtime

FORMAT_VERSION = 1
DESCRIPTION, WEIGHTS = "heads.json", "heads.safetensors"
IDS = "reduced_ids"  # beside the weights, of heads that guess among some ids: int32, ascending


def save_heads(heads: Heads, folder: Path, mantissa_bits: int = BFLOAT16_MANTISSA_BITS) -> None:
    """Write safetensors (`rounding.rounded_state`) and `heads.json`.

    Raises RuntimeError if two parameters share memory.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = rounded_state(heads, mantissa_bits)
    places = [p.data_ptr() for _, p in heads.named_parameters(remove_duplicate=False)]
    if len(set(places)) < len(places):
        raise RuntimeError(f"{heads.family} heads share parameters: each needs its own")
    target = heads.target
    if target.reduced is not None:
        state[IDS] = target.reduced.ids.to("cpu", torch.int32)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)  # written through a private temporary file
    description = {
        "format_version": FORMAT_VERSION,
        "family": heads.family,
        "options": heads.options,
        "target": {"sha256": target.sha256, "width": target.width, "vocab_size": target.vocab_size},
        "num_parameters": sum(p.numel() for p in heads.parameters()),
        "calibration": heads.calibration,
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n")


def load_heads(
    cls: type[AnyHeads], folder: Path, target: TargetParts, key: str = "method.heads", whose: str = "pair.target"
) -> AnyHeads:
    """The heads in a folder, frozen, on the target's device and in its dtype. whose: the option that names this target.

    Raises ConfigError naming `key` when they are of another family, belong to another target (weights' hash, where both are
    known; width; vocabulary), or do not fit their own description.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    name = str(folder)
    if not (folder / DESCRIPTION).is_file():
        published = cls.from_published(folder, target)
        if published is None:
            raise ConfigError(key, name, f"no {DESCRIPTION} in it: give a folder made by python -m specbench.train")
        return _ready(published, target)  # type: ignore[return-value]
    stored = _description(cls, folder, target.sha256, key, whose)
    belongs = stored["target"]
    for what in ("width", "vocab_size"):
        own, theirs = belongs.get(what), getattr(target, what)
        if own != theirs:
            raise ConfigError(key, name, f"trained for a target of {what} {own}; {whose} has {theirs}")
    try:
        state = blocks.unpacked(load_file(folder / WEIGHTS))
        if IDS in state:
            target = target.over(state.pop(IDS))
        heads = build_heads(cls, target, stored["options"])
        heads.load_state_dict(state)
    except ConfigError:
        raise
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise ConfigError(key, name, f"weights do not fit {DESCRIPTION}: {' '.join(str(error).split())[:200]}") from error
    for part, weight in heads.named_parameters():
        if not weight.isfinite().all():
            raise ConfigError(key, name, f"broken weights: {part} holds NaN or infinity")
    heads.calibration = stored.get("calibration", {})
    return _ready(heads, target)


def _description(cls: type[Heads], folder: Path, sha256: str | None, key: str, model: str = "pair.target") -> dict[str, Any]:
    """What heads say of themselves, when they are of the family and of a target with these weights."""
    name, stored = str(folder), read_description(folder / DESCRIPTION, key, {"family": str, "options": dict, "target": dict})
    if stored.get("format_version") != FORMAT_VERSION:
        raise ConfigError(key, name, f"format version {stored.get('format_version')}, this specbench reads {FORMAT_VERSION}")
    if stored["family"] != cls.family:
        raise ConfigError(key, name, f"these are {stored['family']} heads; the method needs {cls.family} heads")
    whose = stored["target"].get("sha256")
    if None not in (whose, sha256) and whose != sha256:
        remedy = f"trained for a target of sha256 {whose}; {model} has {sha256}: train heads for it"
        raise ConfigError(key, name, remedy)
    return stored


def refuse_deeper_tree(
    cls: type[TreeHeads], nodes: Sequence[Sequence[int]] | None, tree: object, found: Path | TreeHeads
) -> None:
    """Raise ConfigError (method.tree) for a tree deeper than there are heads. found: a folder, asked before a run without
    reading a weight, which may not say how many it holds; or the heads, once they are loaded."""
    if isinstance(found, TreeHeads):
        depth: Any = found.max_depth
    elif (found / DESCRIPTION).is_file():
        depth = read_description(found / DESCRIPTION, KEY, {}).get("options", {}).get("num_heads")
    else:
        depth = cls.published_depth(found)
    if nodes and isinstance(depth, int) and (deepest := max(map(len, nodes))) > depth:
        raise ConfigError("method.tree", tree, f"it is {deepest} deep, and there are {depth} heads")


def look_up_heads(cls: type[Heads], name: str | None, target: ModelSpec) -> dict[str, Path]:
    """What a drafter's `look_up` calls: the folder that `method.heads` names, with heads that are this target's.

    Raises ConfigError.
    """
    identity = target_hash(target)
    folder = find_heads(cls.family, name, target.name, sha256=identity)
    if (folder / DESCRIPTION).is_file():
        _description(cls, folder, identity, KEY)
    return {"heads": folder}


def _ready(heads: AnyHeads, target: TargetParts) -> AnyHeads:
    return heads.to(target.device, target.dtype).eval().requires_grad_(False)


def open_heads(cls: type[AnyHeads], name: str | None, runtime: Runtime) -> tuple[AnyHeads, Path]:
    """What a method's `open` calls: the heads that `method.heads` names, for the runtime's target, and their folder.

    Raises ConfigError naming method.heads.
    """
    spec = runtime.pair.target
    identity = target_hash(spec)
    folder = find_heads(cls.family, name, spec.name, sha256=identity)
    try:
        target = TargetParts.of(runtime.target.module, identity)
    except (ValueError, AttributeError) as error:
        raise ConfigError("pair.target", spec.name, f"takes no heads: {error}") from error
    heads, native = load_heads(cls, folder, target), runtime.target.native
    if native is not None:
        from specbench.engine.backends.native.linear import NativeLinear, run_natively

        run_natively(heads, native)
        lm_head = NativeLinear(cast(nn.Linear, target.lm_head), native, is_lm_head=True)
        heads.target = replace(heads.target, lm_head=lm_head)
        if heads.target.reduced is not None:
            run_natively(heads.target.reduced, native)
    return heads, folder
