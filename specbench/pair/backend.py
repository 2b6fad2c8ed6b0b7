"""Which backend runs the models of a pair: one for both of them and for both arms, settled before a weight is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from specbench.config.options import ConfigError
from specbench.config.specs import ModelSpec, PairSpec
from specbench.pair.load import on_meta, read_config


def choose_backend(pair: PairSpec, wanted: str) -> tuple[PairSpec, str | None]:
    """The pair on the backend of `engine.backend`, and one line where that is not what was asked for.

    `native` falls back to `eager` where it does not cover a model or cannot be built; `auto` takes the fastest that can run and
    says nothing of models that are not covered.
    """
    if wanted == "eager":
        return pair, None
    models = [pair.target, *([] if pair.draft is None else [pair.draft])]
    if wanted in ("compiled", "graph"):
        return _in_fixed_form(pair, models, wanted)
    from specbench.engine.backends.native.build import CannotBuildError, library

    for spec in models:
        why = _refusal(spec)
        if why is not None:
            return pair, None if wanted == "auto" else f"engine.backend={wanted}: eager runs instead, {spec.name}: {why}"
    try:
        library()
    except CannotBuildError as error:
        return pair, f"engine.backend={wanted}: eager runs instead, {error}"
    return _on(pair, "native"), None


def _in_fixed_form(pair: PairSpec, models: Sequence[ModelSpec], wanted: str) -> tuple[PairSpec, str | None]:
    import torch

    from specbench.engine.backends.fixed import refusal, unrecordable
    from specbench.engine.model import Model

    for spec in models:
        if wanted == "graph" and not spec.device.startswith("cuda"):
            where = f"CUDA graphs need both models on CUDA devices, and pair.{spec.role} is on {spec.device}"
            raise ConfigError("engine.backend", wanted, f"{where}: use native or compiled")
        model = Model.wrap(on_meta(spec).to(getattr(torch, spec.dtype)))
        why = refusal(model)
        if why is None and wanted == "graph":
            why = unrecordable(model)
        if why is None and wanted == "compiled" and spec.device == "cpu":
            why = _no_compiler()
        if why is not None:
            return pair, f"engine.backend={wanted}: eager runs instead, {spec.name}: {why}"
    return _on(pair, wanted), None


def _no_compiler() -> str | None:
    from specbench.engine.backends.native.build import CannotBuildError, cache_folder, compiler

    try:
        cache_folder()
        compiler()
    except CannotBuildError as error:
        return str(error)
    return None


def _on(pair: PairSpec, backend: str) -> PairSpec:
    target, draft = replace(pair.target, backend=backend), pair.draft
    if draft is not None:
        replay = None if draft.replay is None else replace(draft.replay, target=replace(draft.replay.target, backend=backend))
        draft = replace(draft, backend=backend, replay=replay)
    return replace(pair, target=target, draft=draft)


def _refusal(spec: ModelSpec) -> str | None:
    from specbench.engine.backends.native.weights import refusal

    return refusal(read_config(spec), spec.dtype, spec.device)
