"""Which models, as small picklable specifications: each process loads, exactly once, only those that it uses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from specbench.config.draft_errors import DraftErrors
from specbench.config.options import ConfigError, check_ranges
from specbench.config.paths import MODELS_DIR
from specbench.config.schema import PairConfig
from specbench.config.specs import ModelSpec, PairSpec, Replay
from specbench.pair.borrow import needs_lender
from specbench.pair.packaged import SMOLLM2, packaged_folder, title
from specbench.pair.shaped import SHAPED, shaped_folder

BUILTIN = "builtin:"
_BUILTIN_DIR = MODELS_DIR / "builtin"


def resolve_path(name: str, role: str = "target") -> str:
    """`builtin:<part>` to a folder of this package, `smollm2:<part>` and `shaped:<size>` to one of the user's cache (see
    `packaged` and `shaped`); anything else is a local folder or a Hub repository as it stands.

    Raises ConfigError for an unknown part and for a path that is no folder (it would be asked of the Hub as a repository).
    """
    if name.startswith(SMOLLM2):
        return packaged_folder(name, role)
    if name.startswith(SHAPED):
        return shaped_folder(name, role)
    if name.startswith(("/", "./", "../", "~")):
        if not Path(name).expanduser().is_dir():
            raise ConfigError(f"pair.{role}", name, "no such folder")
        return str(Path(name).expanduser())
    if not name.startswith(BUILTIN):
        return name
    folder = _BUILTIN_DIR / name.removeprefix(BUILTIN)
    if not (folder / "config.json").is_file():
        parts = sorted(p.parent.name for p in _BUILTIN_DIR.glob("*/config.json"))
        raise ConfigError(f"pair.{role}", name, f"possible: {', '.join(BUILTIN + part for part in parts)}")
    return str(folder)


def resolve_device(device: str, role: str, key: str) -> str:
    """`auto` to the best device there: the target takes the first accelerator, the draft the second if there is one."""
    import torch

    if device == "auto":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return "cpu" if count == 0 else "cuda:1" if role == "draft" and count > 1 else "cuda:0"
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise ConfigError(key, device, "possible: auto, cpu, cuda, cuda:<number>") from None
    if resolved.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (resolved.index or 0) >= count:
            raise ConfigError(key, device, f"this machine has {count} CUDA devices; use cpu or auto")
        return f"cuda:{resolved.index or 0}"
    return device


def specify(config: PairConfig, attention: str = "sdpa") -> PairSpec:
    """The picklable specification of a configured pair. Raises ConfigError for a wrong option or an impossible device."""
    check_ranges(config, "pair.")

    def spec(role: str) -> ModelSpec:
        name = getattr(config, role)
        dtype, key = getattr(config, f"{role}_dtype"), f"pair.{role}_device"
        device = resolve_device(getattr(config, f"{role}_device"), role, key)
        if dtype == "auto":
            # The shipped weights are stored in bfloat16 but made to be compared bit by bit: float32 at work on a CPU.
            dtype = "float32" if device == "cpu" else "bfloat16"
        return ModelSpec(
            role=role,
            name=title(name),
            path=resolve_path(name, role),
            dtype=dtype,
            device=device,
            revision=getattr(config, f"{role}_revision"),
            attention=attention,
            trust_remote_code=config.trust_remote_code,
        )

    target, draft = spec("target"), spec("draft") if config.draft else None
    if draft is not None and needs_lender(draft.path):
        draft = replace(draft, lender=target)
    if config.draft_errors is not None:
        DraftErrors.parse(config.draft_errors)
        if draft is None:
            raise ConfigError("pair.draft", None, "pair.draft_errors takes the time of its forwards from a draft: name one")
        draft = replace(draft, replay=Replay(config.draft_errors, replace(target, device=draft.device)))
    return PairSpec(config.name, target, draft)
