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
    return _on(pair, "native"), None


def _on(pair: PairSpec, backend: str) -> PairSpec:
    target, draft = replace(pair.target, backend=backend), pair.draft
    if draft is not None:
        replay = None if draft.replay is None else replace(draft.replay, target=replace(draft.replay.target, backend=backend))
        draft = replace(draft, backend=backend, replay=replay)
    return replace(pair, target=target, draft=draft)


def _refusal(spec: ModelSpec) -> str | None:
    from specbench.engine.backends.native.weights import refusal

    return refusal(read_config(spec), spec.dtype, spec.device)
