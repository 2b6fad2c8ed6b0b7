"""A loaded model, with what sessions know of its architecture."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from specbench.engine import rotary
from specbench.engine.masks import FULL, MaskPlan, has_alibi

if TYPE_CHECKING:
    from torch import Tensor

    from specbench.engine.request import Request


RECURRENT = ("mamba", "mamba2", "falcon_mamba")  # every layer keeps a state and none a cache: see engine.backends.recurrent


@dataclass
class Model:
    """A loaded causal language model and what a session must know of it.

    vocab_size: ids that it may emit; logits beyond are cut off (padded rows are no tokens). num_rows: ids that it may be fed.
    tree_refusal: why only chains may be fed to it, None if trees may be too. is_draft: an id without a row is fed as id 0.
    recomputed_at: the length beyond which a text that began shorter is computed anew (`engine.rotary`), None without one.
    """

    module: Any  # a transformers PreTrainedModel in eval mode
    vocab_size: int
    plan: MaskPlan
    accepts_logits_to_keep: bool
    num_cache_layers: int
    num_rows: int
    tree_refusal: str | None = None
    is_recurrent: bool = False  # keeps a state instead of a cache: see engine.backends.recurrent
    is_draft: bool = False
    recomputed_at: int | None = None
    fixed: str | None = None  # what makes programs of its forwards where engine.backends.fixed runs them (`captures`)
    native: Any = None  # its packed weights where engine.backends.native computes it: see `run_natively`
    opens: Callable[[], Any] | None = None  # makes its sessions where no forward is computed (`specbench.sim`)
    alive: Callable[[], None] = lambda: None  # called between pieces of long work that is no forward (compiling)

    @classmethod
    def wrap(cls, module: Any, vocab_size: int | None = None) -> Model:
        """Raises ValueError, with the reason, for models whose cache cannot be rolled back exactly."""
        config = module.config.get_text_config(decoder=True)
        if getattr(module.config, "is_encoder_decoder", False):
            raise ValueError("encoder-decoder models are not supported")
        if getattr(config, "num_hidden_layers", None) is None:
            raise ValueError("its configuration does not say how many layers keep keys and values")
        is_recurrent = getattr(config, "model_type", None) in RECURRENT
        if getattr(module, "_is_stateful", False) and not is_recurrent:
            raise ValueError(f"its recurrent state cannot be rolled back; of such models {', '.join(RECURRENT)} can be targets")
        rotary.by_row(module)
        parameters = inspect.signature(module.forward).parameters
        return cls(
            module=module.eval(),
            vocab_size=min(vocab_size or config.vocab_size, config.vocab_size),
            plan=MaskPlan((FULL,), None) if is_recurrent else MaskPlan.of(config),
            accepts_logits_to_keep="logits_to_keep" in parameters,
            num_cache_layers=config.num_hidden_layers,
            num_rows=config.vocab_size,
            tree_refusal=_tree_refusal(config, is_recurrent),
            is_recurrent=is_recurrent,
            recomputed_at=rotary.recomputed_at(config),
        )

    def run_natively(self, instructions: str | None = None) -> Model:
        """From now on sessions on this model compute with `engine.backends.native`. Raises CannotBuildError."""
        from specbench.engine.backends.native.weights import NativeWeights

        self.native = NativeWeights(self.module, self.plan, instructions)
        return self

    def with_module(self, module: Any) -> Model:
        """The same around a module of the same shape, on the same backend."""
        made = replace(self, module=module, native=None)
        return made if self.native is None else made.run_natively()

    def refresh(self) -> None:
        """The module's weights have changed: what a backend keeps of them is made anew."""
        if self.native is not None:
            self.native.pack(self.module)

    @property
    def backend(self) -> str:
        """Which of `engine.target`'s runs its forwards."""
        return "recurrent" if self.is_recurrent else self.fixed or ("eager" if self.native is None else "native")

    @property
    def device(self) -> torch.device:
        return self.module.device

    @property
    def dtype(self) -> torch.dtype:
        return self.module.dtype

    @property
    def context_length(self) -> int | None:
        """Positions that the model was made for, or None if it does not say."""
        return rotary.context_length(self.module.config.get_text_config(decoder=True))

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.module.parameters())

    def rows_of(self, ids: Sequence[int]) -> Sequence[int]:
        """The ids as they are fed. Raises ValueError for ids that a target has no row for.

        A draft with fewer rows than its target cannot know such a token: it is fed id 0, and its guess costs acceptance only.
        """
        if max(ids) < self.num_rows:
            return ids
        if self.is_draft:
            return [i if i < self.num_rows else 0 for i in ids]
        unknown = sorted({i for i in ids if i >= self.num_rows})
        raise ValueError(f"ids {', '.join(map(str, unknown[:5]))} have no row in this model of {self.num_rows} rows")

    def answer(self, logits: Tensor, past: int, rows: int) -> Tensor:
        """Of a forward's logits [n, V], those of the last n of `rows` rows fed behind `past`, what a session gives on."""
        return logits if logits.shape[1] == self.vocab_size else logits[:, : self.vocab_size]

    def expect(self, request: Request) -> None:
        """A draft model is told of every prompt before its clock starts. A real one needs no word (see `pair.scripted`)."""


def _layers(config: Any) -> Sequence[str]:
    """GPT-Neo's name for layer types."""
    return getattr(config, "attention_layers", None) or ()


def _tree_refusal(config: Any, is_recurrent: bool) -> str | None:
    if is_recurrent:
        return "its state belongs to one path"
    if has_alibi(config):
        return "it makes its mask and distances (ALiBi) from the order of rows"
    # GPT-Neo cuts its local layers by row inside the attention, where no mask of ours reaches.
    return "its local attention counts rows, not depth" if "local" in _layers(config) else None
