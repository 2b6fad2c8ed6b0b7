"""Loads target, draft and tokenizer; refuses an ill-matched pair with the reason before anything runs.

A `PairSpec` is small and picklable: each process loads, exactly once, only the models that it uses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specbench.draft_errors import DraftErrors
from specbench.schema import ConfigError, PairConfig

if TYPE_CHECKING:
    from specbench.engine.session import Model

BUILTIN = "builtin:"
_BUILTIN_DIR = Path(__file__).resolve().parent / "models" / "builtin"
_DTYPES = ("auto", "float32", "bfloat16", "float16")


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
    name: str  # as the user wrote it
    path: str
    dtype: str
    device: str
    revision: str | None
    attention: str
    trust_remote_code: bool
    replay: Replay | None = None


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


def resolve_path(name: str, role: str = "target") -> str:
    """`builtin:<part>` to a folder of this package; anything else is a local folder or a Hub repository as it stands.

    Raises ConfigError for an unknown part and for a path that is no folder (it would be asked of the Hub as a repository).
    """
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
    """The picklable specification of a configured pair. Raises ConfigError for a missing target or an impossible device."""
    if not config.target:
        raise ConfigError("pair.target", config.target, "name a Hugging Face repository, a local folder or builtin:target")

    def spec(role: str) -> ModelSpec:
        name = getattr(config, role)
        dtype, key = getattr(config, f"{role}_dtype"), f"pair.{role}_device"
        if dtype not in _DTYPES:
            raise ConfigError(f"pair.{role}_dtype", dtype, f"possible: {', '.join(_DTYPES)}")
        device = resolve_device(getattr(config, f"{role}_device"), role, key)
        if dtype == "auto":
            # The shipped weights are stored in bfloat16 but made to be compared bit by bit: float32 at work on a CPU.
            dtype = "float32" if device == "cpu" else "bfloat16"
        return ModelSpec(
            role=role,
            name=name,
            path=resolve_path(name, role),
            dtype=dtype,
            device=device,
            revision=getattr(config, f"{role}_revision"),
            attention=attention,
            trust_remote_code=config.trust_remote_code,
        )

    target, draft = spec("target"), spec("draft") if config.draft else None
    if config.draft_errors is not None:
        DraftErrors.parse(config.draft_errors)
        if draft is None:
            raise ConfigError("pair.draft", None, "pair.draft_errors takes the time of its forwards from a draft: name one")
        draft = replace(draft, replay=Replay(config.draft_errors, replace(target, device=draft.device)))
    return PairSpec(config.name, target, draft)


def load_model(spec: ModelSpec, vocab_size: int | None = None) -> Model:
    """Load one model in this process. Raises ConfigError naming pair.<role> when it is missing or cannot be rolled back.

    A draft that replays the target's text brings a target of its own, wherever it is loaded.
    """
    if spec.replay is not None:
        from specbench.engine.replay import ReplayModel

        draft, target = (
            load_model(replace(spec, replay=None), vocab_size),
            load_model(spec.replay.target, spec.replay.vocab_size),
        )
        return ReplayModel.around(draft, target, DraftErrors.parse(spec.replay.errors))
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    from specbench.engine.session import Model

    transformers_logging.disable_progress_bar()
    try:
        module = AutoModelForCausalLM.from_pretrained(
            spec.path,
            revision=spec.revision,
            dtype=getattr(torch, spec.dtype),
            attn_implementation=spec.attention,
            trust_remote_code=spec.trust_remote_code,
            use_safetensors=True,  # a pickle can run code
            **({"device_map": {"": spec.device}} if spec.device != "cpu" else {}),
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"pair.{spec.role}", spec.name, f"cannot be loaded: {reason[:300]}") from error
    module.requires_grad_(False)
    try:
        return Model.wrap(module, vocab_size)
    except ValueError as error:
        raise ConfigError(f"pair.{spec.role}", spec.name, f"refused: {error}") from error


def load_tokenizer(spec: ModelSpec) -> Any:
    """The tokenizer that belongs to a model."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(spec.path, revision=spec.revision, trust_remote_code=spec.trust_remote_code)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"pair.{spec.role}", spec.name, f"its tokenizer cannot be loaded: {reason[:300]}") from error


def eos_ids(module: Any, tokenizer: Any) -> frozenset[int]:
    """All end-of-sequence ids of the generation config (Llama 3 has several), else the tokenizer's."""
    found = getattr(getattr(module, "generation_config", None), "eos_token_id", None)
    if found is None:
        found = getattr(tokenizer, "eos_token_id", None)
    if found is None:
        return frozenset()
    return frozenset([found] if isinstance(found, int) else found)


def read_config(spec: ModelSpec) -> Any:
    """A model's configuration without its weights (for checks before anything is loaded)."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(spec.path, revision=spec.revision, trust_remote_code=spec.trust_remote_code)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"pair.{spec.role}", spec.name, f"cannot be loaded: {reason[:300]}") from error


def vocabulary(config: Any, tokenizer: Any) -> int:
    """Number of ids that a model may emit: its rows, less the padding ones that its tokenizer has no token for."""
    return min(config.get_text_config(decoder=True).vocab_size, 1 + max(tokenizer.get_vocab().values()))


def common_vocabulary(target_config: Any, draft_config: Any, target_tokenizer: Any, draft_tokenizer: Any) -> int:
    """Number of the target's ids that the draft has rows for; raises ValueError where the two give an id two meanings.

    Rows beyond the tokenizers' own ids are padding (Qwen2.5 has 151,936 or 152,064 rows, CodeLlama 32,016 or 32,000) and no
    mismatch: the target keeps its own range, the draft proposes nothing outside its own (q = 0 there).
    """
    rows = min(vocabulary(target_config, target_tokenizer), draft_config.get_text_config(decoder=True).vocab_size)
    target_ids = {i: token for token, i in target_tokenizer.get_vocab().items()}
    draft_ids = {i: token for token, i in draft_tokenizer.get_vocab().items()}
    common = sorted(i for i in target_ids.keys() & draft_ids.keys() if i < rows)
    wrong = [i for i in common if target_ids[i] != draft_ids[i]]
    if wrong:
        i = wrong[0]
        raise ValueError(
            f"the tokenizers differ on {len(wrong)} of {len(common)} common ids, first at {i}: "
            f"{target_ids[i]!r} in the target, {draft_ids[i]!r} in the draft"
        )
    if not common or len(common) < 0.9 * min(len(target_ids), len(draft_ids)):
        raise ValueError(f"the tokenizers share only {len(common)} ids")
    sample = "def f(x):\n    return x + 1  # été 日本\n"
    if target_tokenizer(sample).input_ids != draft_tokenizer(sample).input_ids:
        raise ValueError("the tokenizers cut the same text into different ids")
    return rows


def check_pair(spec: PairSpec, target_tokenizer: Any) -> PairSpec:
    """Refuse an ill-matched pair before any weight is loaded; returns the spec with its vocabularies."""
    target_config = read_config(spec.target)
    spec = replace(spec, vocab_size=vocabulary(target_config, target_tokenizer))
    if spec.draft is None:
        return spec
    draft_config = read_config(spec.draft)
    try:
        rows = common_vocabulary(target_config, draft_config, target_tokenizer, load_tokenizer(spec.draft))
    except ValueError as error:
        raise ConfigError("pair.draft", spec.draft.name, f"does not match {spec.target.name}: {error}") from error
    draft = spec.draft
    if draft.replay is not None:
        draft = replace(draft, replay=replace(draft.replay, vocab_size=spec.vocab_size))
    return replace(spec, draft=draft, draft_vocab_size=rows)


def context_length(spec: PairSpec) -> int | None:
    """The shorter of the two models' position ranges, or None where neither says."""
    lengths = [
        getattr(read_config(s).get_text_config(decoder=True), "max_position_embeddings", None)
        for s in (spec.target, spec.draft)
        if s is not None
    ]
    known = [n for n in lengths if n]
    return min(known) if known else None


def local_folder(spec: ModelSpec) -> Path | None:
    """Where a model's files lie on this machine: its folder, or the Hub cache's snapshot (named by its commit)."""
    if Path(spec.path).is_dir():
        return Path(spec.path)
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(spec.path, "config.json", revision=spec.revision or "main")
    return Path(found).parent if isinstance(found, str) else None


def pair_facts(spec: PairSpec) -> dict[str, Any]:
    """Names, resolved revisions, dtypes, devices, sizes and hashes of both models and the tokenizer, for run.json."""
    from specbench.measure.provenance import model_hash, stored_parameters, tokenizer_hash

    def facts(model: ModelSpec | None) -> dict[str, Any] | None:
        if model is None:
            return None
        folder = local_folder(model)
        at_hub = folder is not None and not Path(model.path).is_dir()
        return {
            "name": model.name,
            "path": model.name if model.name.startswith(BUILTIN) else model.path,
            "dtype": model.dtype,
            "device": model.device,
            "attention": model.attention,
            "revision": model.revision,
            "resolved_revision": folder.name if folder is not None and at_hub else None,
            "sha256": model_hash(folder) if folder is not None else None,
            "num_parameters": stored_parameters(folder) if folder is not None else None,
            "trust_remote_code": model.trust_remote_code,
            **({"errors": model.replay.errors} if model.replay is not None else {}),
        }

    folder = local_folder(spec.target)
    return {
        "name": spec.name,
        "target": facts(spec.target),
        "draft": facts(spec.draft),
        "tokenizer": {"sha256": tokenizer_hash(folder) if folder is not None else None},
        "vocab_size": spec.vocab_size,
        "draft_vocab_size": spec.draft_vocab_size,
    }
