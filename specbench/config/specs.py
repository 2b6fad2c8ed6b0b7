"""Which models, as small picklable specifications: each process loads, exactly once, only those that it uses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Replay:
    """A draft that replays a target's text with errors (pair.draft_errors). vocab_size: of the target, None until checked."""

    errors: str
    target: ModelSpec
    vocab_size: int | None = None


@dataclass(frozen=True)
class ModelSpec:
    """Where a model comes from and how it runs. `path`: a local folder or a Hub repository."""

    role: str  # "target" | "draft"
    name: str  # as the user wrote it; of a packaged model its full name
    path: str
    dtype: str
    device: str
    revision: str | None
    attention: str
    trust_remote_code: bool
    replay: Replay | None = None
    backend: str = "eager"  # see engine.target
    lender: ModelSpec | None = None  # of a draft that takes embeddings and LM head from its target (`pair.borrow`): that one


@dataclass(frozen=True)
class PairSpec:
    """A target and, unless no method needs one, a draft.

    vocab_size: ids that the target may emit, whatever the draft; draft_vocab_size: those of them that the draft has a row for
    (q = 0 beyond). Both None until checked.
    """

    name: str
    target: ModelSpec
    draft: ModelSpec | None
    vocab_size: int | None = None
    draft_vocab_size: int | None = None


def local_folder(spec: ModelSpec) -> Path | None:
    """Where a model's files lie on this machine: its folder, or the Hub cache's snapshot (named by its commit)."""
    if Path(spec.path).is_dir():
        return Path(spec.path)
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(spec.path, "config.json", revision=spec.revision or "main")
    return Path(found).parent if isinstance(found, str) else None
