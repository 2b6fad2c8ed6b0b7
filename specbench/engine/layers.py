"""A model that is part of another one: some of its layers, the same weights, numbers and all.

The layers keep their numbers, so that sessions on parts of a model share the whole model's cache: what one layer keeps of the
text is found where that layer looks for it, whoever fed it. Transformers' own layers run, so a forward in two parts gives what
one in one piece gives, to the bit where the same kernels run.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from specbench.engine.model import Model


def has_layers(model: Model) -> bool:
    """Whether the model is laid out as Llama and most others are: `model.layers`, `model.norm`, `lm_head`."""
    inner = getattr(model.module, "model", None)
    layers = getattr(inner, "layers", None)
    return isinstance(layers, nn.ModuleList) and hasattr(inner, "norm") and hasattr(model.module, "lm_head")


def view(model: Model, layers: Sequence[int], final_norm: bool = True) -> Model:
    """The model with these of its layers, in order. final_norm: false leaves the hidden states as the last layer made them.

    Raises ValueError for a model whose layers cannot be told apart.
    """
    if not has_layers(model):
        raise ValueError(f"{type(model.module).__name__} is not made of model.layers, model.norm and lm_head")
    outer, inner = model.module, model.module.model
    config = copy.copy(inner.config)
    config.num_hidden_layers = len(layers)
    if getattr(config, "layer_types", None) is not None:  # by place, and it chooses mask and rotary positions
        config.layer_types = [config.layer_types[number] for number in layers]
    parts: dict[str, nn.Module] = {"layers": nn.ModuleList([inner.layers[number] for number in layers])}
    if not final_norm:
        parts["norm"] = nn.Identity()
    small = with_parts(inner, config, **parts)
    return replace(model, module=with_parts(outer, config, model=small))


def first_layers(model: Model, count: int) -> Model:
    """A model of its own that ends early: the first layers, then the final norm and the LM head; needs no backend's weights."""
    return replace(view(model, range(count)), num_cache_layers=count, native=None)


def with_parts(module: nn.Module, config: Any, **children: nn.Module) -> Any:
    """The same parameters, other children. config: None leaves it."""
    made = copy.copy(module)
    made.__dict__["_modules"] = {**module._modules, **children}
    if config is not None:
        made.config = config
    return made


def exit_logits(model: Model, hidden: torch.Tensor) -> torch.Tensor:
    """What the LM head says of hidden states [n, width] that no final norm has seen: logits [n, vocab]."""
    logits, config = model.module.lm_head(model.module.model.norm(hidden)), model.module.config.get_text_config(decoder=True)
    # What the architectures do behind their LM head: Granite, Cohere, Gemma.
    if divisor := getattr(config, "logits_scaling", None):
        logits = logits / divisor
    if factor := getattr(config, "logit_scale", None):
        logits = logits * factor
    if cap := getattr(config, "final_logit_softcapping", None):
        logits = (logits / cap).tanh() * cap
    return logits[:, : model.vocab_size] if logits.shape[1] != model.vocab_size else logits


def empty(config: Any, attention: str | None = None) -> Any:
    """A causal language model of the configuration whose weights are to be assigned: no memory is spent on new ones."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config, **({"attn_implementation": attention} if attention else {}))
    for name, part in list(module.named_modules()):
        if name.endswith("rotary_emb"):  # its buffers are computed, not stored
            parent = module.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], type(part)(config))
    return module
