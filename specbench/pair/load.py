"""Loads target, draft and tokenizer; refuses an ill-matched pair with the reason before anything runs.

A `PairSpec` is small and picklable: each process loads, exactly once, only the models that it uses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specbench.config.draft_errors import DraftErrors
from specbench.config.options import ConfigError
from specbench.config.specs import ModelSpec, PairSpec, local_folder
from specbench.pair.borrow import check_lender, load_borrowing
from specbench.pair.shaped import build, is_shaped
from specbench.pair.spec import BUILTIN
from specbench.pair.vocabulary import common_vocabulary, vocabulary

if TYPE_CHECKING:
    from specbench.engine.model import Model


def load_model(spec: ModelSpec, vocab_size: int | None = None) -> Model:
    """Load one model in this process. Raises ConfigError naming pair.<role> when it is missing or cannot be rolled back.

    A draft that replays the target's text brings a target of its own, wherever it is loaded.
    """
    if spec.replay is not None:
        from specbench.pair.scripted import ReplayModel

        draft, target = (
            load_model(replace(spec, replay=None), vocab_size),
            load_model(spec.replay.target, spec.replay.vocab_size),
        )
        return ReplayModel.around(draft, target, DraftErrors.parse(spec.replay.errors))
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    if is_shaped(spec):
        return _finished(spec, build(spec), vocab_size)
    if spec.lender is not None:
        return _finished(spec, load_borrowing(spec), vocab_size)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            spec.path,
            output_loading_info=True,
            revision=spec.revision,
            dtype=getattr(torch, spec.dtype),
            attn_implementation=spec.attention,
            trust_remote_code=spec.trust_remote_code,
            use_safetensors=True,  # a pickle can run code
            **({"device_map": {"": spec.device}} if spec.device != "cpu" else {}),
        )
    except (OSError, ValueError, SafetensorError) as error:
        reason, where = " ".join(str(error).split()), f" (in {spec.path})" if spec.path != spec.name else ""
        raise ConfigError(f"pair.{spec.role}", spec.name, f"cannot be loaded: {reason[:300]}{where}") from error
    module, found = loaded
    if missing := sorted(found["missing_keys"]):  # transformers would draw them at random
        remedy = f"cannot be loaded: its files lack {len(missing)} weights ({missing[0]}, ...); fetch the model again"
        raise ConfigError(f"pair.{spec.role}", spec.name, remedy)
    return _finished(spec, module, vocab_size)


def _finished(spec: ModelSpec, module: Any, vocab_size: int | None) -> Model:
    """The module as a model on its backend. Raises ConfigError where its cache cannot be rolled back exactly."""
    from specbench.engine.model import Model

    module.requires_grad_(False)
    try:
        model = replace(Model.wrap(module, vocab_size), is_draft=spec.role == "draft")
    except ValueError as error:
        raise ConfigError(f"pair.{spec.role}", spec.name, f"refused: {error}") from error
    return on_its_backend(model, spec.backend)


def on_its_backend(model: Model, backend: str) -> Model:
    """The model as `backend` computes it; this process's threads go to that backend's pool."""
    from specbench.engine import threads

    threads.keep_to(backend)
    if backend in ("compiled", "graph"):
        return replace(model, fixed=backend)
    return model.run_natively() if backend == "native" else model


def draft_loader(pair: PairSpec) -> Callable[[], Model] | None:
    """What loads the pair's draft in another process; None without a draft."""
    return None if pair.draft is None else partial(load_model, pair.draft, pair.draft_vocab_size)


def abilities(spec: ModelSpec) -> frozenset[str]:
    """What a target of this architecture can be asked (`engine.target.Target.can`), told without loading its weights."""
    import torch

    from specbench.engine.model import Model
    from specbench.engine.target import open_target

    with torch.device("meta"):
        return open_target(Model.wrap(on_meta(spec))).can


def on_meta(spec: ModelSpec) -> Any:
    """The model without numbers."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(read_config(spec), trust_remote_code=spec.trust_remote_code)


def load_tokenizer(spec: ModelSpec) -> Any:
    """The tokenizer that belongs to a model."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(spec.path, revision=spec.revision, trust_remote_code=spec.trust_remote_code)
    except Exception as error:  # the tokenizers library knows no more special one
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


def num_layers(spec: ModelSpec) -> int:
    """By a model's configuration."""
    return int(read_config(spec).get_text_config(decoder=True).num_hidden_layers)


def check_pair(spec: PairSpec, target_tokenizer: Any) -> PairSpec:
    """Refuse an ill-matched pair before any weight is loaded; returns the spec with its vocabularies."""
    target_config = read_config(spec.target)
    refuse_ids_without_rows(spec.target, target_tokenizer, {"any": target_tokenizer("a").input_ids})
    spec = replace(spec, vocab_size=vocabulary(target_config, target_tokenizer))
    if spec.draft is None:
        return spec
    draft, rows = spec.draft, spec.vocab_size
    if draft.lender is not None:  # it reads the target's own ids
        check_lender(draft)
    else:
        try:
            rows = common_vocabulary(target_config, read_config(draft), target_tokenizer, load_tokenizer(draft))
        except ValueError as error:
            raise ConfigError("pair.draft", draft.name, f"does not match {spec.target.name}: {error}") from error
    if draft.replay is not None:
        draft = replace(draft, replay=replace(draft.replay, vocab_size=spec.vocab_size))
    return replace(spec, draft=draft, draft_vocab_size=rows)


def refuse_ids_without_rows(target: ModelSpec, tokenizer: Any, prompts: Mapping[str, Sequence[int]]) -> None:
    """Raise ConfigError where a prompt, by sample, holds ids that the target has no row for.

    A tokenizer may know such tokens as long as no prompt holds them: Gemma 3's text models know one for images.
    """
    rows = read_config(target).get_text_config(decoder=True).vocab_size
    odd = [sample for sample, ids in prompts.items() if max(ids, default=0) >= rows]
    if odd:
        unknown = sorted({i for sample in odd for i in prompts[sample] if i >= rows})
        named = ", ".join(f"{tokenizer.convert_ids_to_tokens(i)!r} ({i})" for i in unknown[:5])
        where = f"{len(odd)} of {len(prompts)} prompts (sample {odd[0]}{', ...' if len(odd) > 1 else ''}) hold {named}"
        remedy = f"{where}, but the model has {rows} rows: take one whose embedding was enlarged with its tokenizer"
        raise ConfigError("pair.target", target.name, remedy)


def refuse_recomputed(target: ModelSpec, lengths: Mapping[str, int], max_new_tokens: int) -> None:
    """Raise ConfigError where a prompt, its length given by sample, can outgrow what the target need not compute anew."""
    from specbench.engine import rotary

    line = rotary.recomputed_at(read_config(target).get_text_config(decoder=True))
    odd = [sample for sample, length in lengths.items() if line is not None and length <= line < length + max_new_tokens]
    if odd:
        where = (
            f"{len(odd)} of {len(lengths)} prompts (sample {odd[0]}{', ...' if len(odd) > 1 else ''}) and their output cross"
        )
        reason = f"{where} the {line} positions behind which {target.name} has other rotary frequencies for the whole text"
        raise ConfigError("decoding.max_new_tokens", max_new_tokens, f"{reason}: fewer tokens, or data.max_prompt_tokens")


def context_length(spec: PairSpec) -> int | None:
    """The shorter of the two models' position ranges, or None where neither says."""
    from specbench.engine import rotary

    configs = [read_config(s).get_text_config(decoder=True) for s in (spec.target, spec.draft) if s is not None]
    lengths = [rotary.context_length(config) for config in configs]
    known = [n for n in lengths if n]
    return min(known) if known else None


def pair_facts(spec: PairSpec) -> dict[str, Any]:
    """Names, resolved revisions, dtypes, devices, sizes and hashes of both models and the tokenizer, for run.json."""
    from specbench.measure.records.provenance import model_hash, stored_parameters, tokenizer_hash

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
            **({"backend": model.backend} if model.backend != "eager" else {}),
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
