"""Which backend runs the models of a pair: one for both of them and for both arms, settled before a weight is loaded."""

from __future__ import annotations

from dataclasses import replace

from specbench.config.specs import ModelSpec, PairSpec
from specbench.pair.load import read_config


def choose_backend(pair: PairSpec, wanted: str) -> tuple[PairSpec, str | None]:
    """The pair on the backend of `engine.backend`, and one line where that is not what was asked for.

    `native` falls back to `eager` where it does not cover a model or cannot be built; `auto` takes the fastest that can run and
    says nothing of models that are not covered.
    """
    if wanted == "eager":
        return pair, None
    from specbench.engine.backends.native.build import CannotBuildError, library

    models = [pair.target, *([] if pair.draft is None else [pair.draft])]
    for spec in models:
        why = _refusal(spec)
        if why is not None:
            return pair, None if wanted == "auto" else f"engine.backend={wanted}: eager runs instead, {spec.name}: {why}"
    try:
        library()
    except CannotBuildError as error:
        return pair, f"engine.backend={wanted}: eager runs instead, {error}"
    draft = None if pair.draft is None else replace(pair.draft, backend="native")
    return replace(pair, target=replace(pair.target, backend="native"), draft=draft), None


def _refusal(spec: ModelSpec) -> str | None:
    from specbench.engine.backends.native.weights import refusal

    if spec.replay is not None:
        return "a draft that follows a script answers through transformers"
    return refusal(read_config(spec), spec.dtype, spec.device)
