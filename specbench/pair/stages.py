"""The models of a chain of drafts beside a pair's own: which they are, and what loads each in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from specbench.config.options import ConfigError
from specbench.config.specs import ModelSpec, PairSpec
from specbench.pair.load import abilities, draft_loader, load_model, load_tokenizer, num_layers, on_its_backend, read_config
from specbench.pair.packaged import title
from specbench.pair.spec import BUILTIN, resolve_path
from specbench.pair.vocabulary import common_vocabulary

if TYPE_CHECKING:
    from specbench.engine.model import Model

KEY = "method.stages"


def stage_loader(pair: PairSpec) -> Callable[[str], tuple[str, Callable[[], Any]]] | None:
    """What says, of a stage's name, what the stage is called and what loads it (picklable); None without a draft.

    `draft`: the pair's. `middle`: a model between draft and target. `target:<n>`: the target's first n layers. Else a model as
    `pair.draft` would name it; these run where the draft does. Raises ConfigError (method.stages).
    """
    return None if pair.draft is None else partial(_stage, pair)


def _stage(pair: PairSpec, name: str) -> tuple[str, Callable[[], Any]]:
    load, draft = draft_loader(pair), pair.draft
    assert load is not None and draft is not None, "without a draft nobody asks"
    if name == "draft":
        return draft.name, load
    model = meant(name, pair.target.name, partial(num_layers, pair.target))
    if isinstance(model, int):
        if "layers" not in abilities(pair.target):
            raise ConfigError(KEY, name, f"{pair.target.name} cannot be run layer by layer: name a model")
        spec = replace(pair.target, role="draft", device=draft.device)
        said = f"{pair.target.name}, first {model} of {num_layers(pair.target)} layers"
        return said, partial(_load_first_layers, spec, pair.vocab_size, model)
    spec, rows = _named(pair, draft, model)
    return spec.name, partial(load_model, spec, rows)


def meant(name: str, target: str, num_layers: Callable[[], int]) -> str | int:
    """What a stage's name other than `draft` stands for: a model's name, or the first so many of the target's layers.

    target: its name. Raises ConfigError (method.stages) for layers that it has not.
    """
    if name == "middle" and target == f"{BUILTIN}target":
        return f"{BUILTIN}draft_large"
    if name != "middle" and not name.startswith("target:"):
        return name
    total = num_layers()
    wanted = str(max(1, total // 2)) if name == "middle" else name.removeprefix("target:")
    if not wanted.isdecimal() or not 1 <= int(wanted) <= total:
        raise ConfigError(KEY, name, f"the target has {total} layers: target:<1 to {total}>")
    return int(wanted)


def _named(pair: PairSpec, draft: ModelSpec, name: str) -> tuple[ModelSpec, int]:
    """A model of its own, and how many of the target's ids it has rows for."""
    try:
        path = resolve_path(name, "draft")
        spec = replace(draft, name=title(name), path=path, replay=None, revision=None)
        configs, tokenizers = (map(read_config, (pair.target, spec)), map(load_tokenizer, (pair.target, spec)))
        return spec, common_vocabulary(*configs, *tokenizers)
    except ConfigError as error:
        raise ConfigError(KEY, name, error.remedy) from error
    except ValueError as error:
        raise ConfigError(KEY, name, f"does not match {pair.target.name}: {error}") from error


def _load_first_layers(spec: ModelSpec, vocab_size: int | None, count: int) -> Model:
    from specbench.engine.layers import first_layers

    model = first_layers(load_model(replace(spec, backend="eager"), vocab_size), count)
    return on_its_backend(model, spec.backend)
