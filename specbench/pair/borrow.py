"""A draft whose folder holds layers alone: embeddings and LM head are its target's, the latter reduced to the draft's ids.

Its folder: config.json as of any model, with `reduced_head` (`num_ids`, and `target_sha256`, whose embeddings they are), and
model.safetensors with the layers, the last norm and the map `lm_head.ids` (int32, ascending).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specbench.config.options import ConfigError
from specbench.config.specs import ModelSpec, local_folder
from specbench.measure.records.provenance import target_identity

if TYPE_CHECKING:
    from torch import Tensor

KEY = "reduced_head"  # in config.json
WEIGHTS, IDS = "model.safetensors", "lm_head.ids"
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def needs_lender(path: str) -> bool:
    """Whether the model in a local folder borrows; a repository of the Hub never does."""
    config = Path(path) / "config.json"
    try:
        return KEY in json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # said by whoever loads it
        return False


def check_lender(draft: ModelSpec) -> None:
    """Raise ConfigError where the draft in a folder was not made for the target that lends to it."""
    assert draft.lender is not None
    try:
        wanted = json.loads((Path(draft.path) / "config.json").read_text(encoding="utf-8"))[KEY]["target_sha256"]
    except (TypeError, KeyError) as error:
        reason = f"cannot be loaded: its config.json names no target_sha256 in {KEY}: fetch it again"
        raise ConfigError("pair.draft", draft.name, reason) from error
    folder = local_folder(draft.lender)
    found = target_identity(folder) if folder is not None else None
    if found != wanted:
        reason = f"it borrows embeddings and LM head of a target of sha256 {wanted}; pair.target has {found}"
        raise ConfigError("pair.draft", draft.name, f"does not match {draft.lender.name}: {reason}")


def load_borrowing(spec: ModelSpec) -> Any:
    """The draft as a module in `spec.dtype` on `spec.device`. Raises ConfigError for files that make no such draft."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from transformers import AutoConfig

    from specbench.engine import blocks
    from specbench.engine.layers import empty
    from specbench.engine.reduced import ReducedHead

    assert spec.lender is not None
    folder = local_folder(spec.lender)
    assert folder is not None, "the target is on this machine: its files were compared"
    try:
        state = blocks.unpacked(load_file(Path(spec.path) / WEIGHTS))
        ids = state.pop(IDS).long()
        borrowed = dict(_tensors(folder, (_EMBEDDING, _HEAD)))
        embedding = borrowed[_EMBEDDING]
        head = torch.nn.Linear(1, 1, bias=False)
        head.weight = torch.nn.Parameter(borrowed.get(_HEAD, embedding).float(), requires_grad=False)
        reduced = ReducedHead.of(head, ids)
        config = AutoConfig.from_pretrained(spec.path)
        if len(ids) != getattr(config, KEY)["num_ids"]:
            raise ValueError(f"its map has {len(ids)} ids, its configuration says {getattr(config, KEY)['num_ids']}")
        module = empty(config, spec.attention)
        module.lm_head = reduced
        found = module.load_state_dict({**state, _EMBEDDING: embedding}, strict=False, assign=True)
        if lacking := sorted(set(found.missing_keys) - {"lm_head.linear.weight"}) or found.unexpected_keys:
            raise ValueError(f"{WEIGHTS} and config.json disagree about {lacking[0]}")
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"pair.{spec.role}", spec.name, f"cannot be loaded: {reason[:300]}") from error
    return module.to(device=spec.device, dtype=getattr(torch, spec.dtype)).eval()


def save_borrowing(draft: Any, ids: Tensor, target_sha256: str, folder: Path, state: dict[str, Tensor]) -> None:
    """Write a draft's `state` (what is its own) with its map, and its configuration."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    own = {name: value.contiguous() for name, value in state.items() if name not in (_EMBEDDING, _HEAD)}
    save_file({**own, IDS: ids.to("cpu", torch.int32)}, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)
    config = draft.config.to_dict() | {KEY: {"num_ids": len(ids), "target_sha256": target_sha256}}
    for name in ("_name_or_path", "_model_name_or_path"):  # of the machine that it was made on
        config.pop(name, None)
    config |= {"architectures": [type(draft).__name__], "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _tensors(folder: Path, names: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as stored:
            for name in set(names) & set(stored.keys()):
                yield name, stored.get_tensor(name)
