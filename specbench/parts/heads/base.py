"""The contract of trained heads: small modules that draft from the target's last hidden states (Medusa, Hydra, EAGLE ...).

A family is a subclass of `Heads`; a method names it as its `heads_class`, and from that alone `python -m specbench.train
part=heads method=<name>` can train it, `method.heads=<folder>` load it and the checks make a tiny one. A drafter holds them as
`heads`: so the checks compare what it drafts with `ranks`. What belongs to the
target (LM head, embedding, last norm) is lent to the heads through `TargetParts`: used, frozen, never saved with them.

Positions, everywhere: h[t] is the LM head's input after the text's token t. Token t + 1 is the target's own choice from h[t],
the pending token of a round; the draft at depth k (from 1) is for token t + 1 + k.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from specbench.config.options import ConfigError, flag, whole
from specbench.engine.reduced import ReducedHead

if TYPE_CHECKING:
    from specbench.parts.shapes.plan import Level

Pick = Callable[[Tensor, "Level"], "Sequence[int] | Tensor"]

_NORM_NAMES = ("norm", "final_layernorm", "final_layer_norm", "ln_f")  # what transformers calls the norm before the LM head


@dataclass(frozen=True)
class TargetParts:
    """What heads may use of their target. Not an nn.Module: held by heads, it adds nothing to their parameters.

    width: of the hidden states. vocab_size: rows of the LM head. lm_head: [..., width] to logits [..., vocab_size]. embedding:
    ids [...] to [..., embedding's own width]. norm: the one before the LM head, None where it is not found by name.
    config: the target's text configuration (layer shapes, rotary settings). sha256: its identity
    (`provenance.target_identity`), None for a model that was made in memory. reduced: the ids that heads guess among, None for
    all of them; whoever scores a guess goes through `guess`, `rank`, `ids_of` and `whole`.
    """

    config: Any
    width: int
    vocab_size: int
    lm_head: nn.Module
    embedding: nn.Module
    norm: nn.Module | None
    sha256: str | None = None
    reduced: ReducedHead | None = None

    @classmethod
    def of(cls, module: Any, sha256: str | None = None) -> TargetParts:
        """The parts of a causal language model of transformers. Raises ValueError for one without an LM head of its own."""
        head, embedding = module.get_output_embeddings(), module.get_input_embeddings()
        if head is None or embedding is None:
            raise ValueError(f"{type(module).__name__} names no LM head or no embedding")
        inner = getattr(module, getattr(module, "base_model_prefix", ""), module)
        norm = next((getattr(inner, name) for name in _NORM_NAMES if hasattr(inner, name)), None)
        config = module.config.get_text_config(decoder=True)
        reduced = isinstance(head, ReducedHead)  # of a draft over some ids
        rows, width = (head.vocab_size, head.linear.in_features) if reduced else head.weight.shape
        return cls(config, width, rows, head, embedding, norm, sha256)

    def over(self, ids: Sequence[int] | Tensor) -> TargetParts:
        """The same for heads that guess among `ids` alone. Raises ValueError for ids that are no such map."""
        return replace(self, reduced=ReducedHead.of(self.lm_head, ids))

    @property
    def num_guessed(self) -> int:
        """Ids that are guessed among."""
        return self.vocab_size if self.reduced is None else len(self.reduced.ids)

    def embed(self, ids: Sequence[int] | Tensor) -> Tensor:
        """Embeddings [..., embedding's own width] of ids [...], or of a list that the host has."""
        if isinstance(ids, Tensor):
            return self.embedding(ids)
        weight: Any = self.embedding.weight
        if len(ids) == 1 and type(self.embedding) is nn.Embedding and weight.is_cpu:
            return weight[ids[0] : ids[0] + 1]  # where it lies
        return self.embedding(torch.tensor(ids, device=weight.device))

    def guess(self, hidden: Tensor) -> Tensor:
        """Logits of the ids that are guessed among, [..., num_guessed], from hidden [..., width]."""
        return self.lm_head(hidden) if self.reduced is None else self.reduced.linear(hidden)

    def ids_of(self, places: Tensor) -> Tensor:
        """The ids at places of `guess`'s last dimension, int64 [...]."""
        return places if self.reduced is None else self.reduced.ids[places]

    def places_of(self, tokens: Tensor) -> Tensor:
        """Where `guess`'s last dimension has each token, int64 [...], -1 for what is not guessed; -1 stays -1."""
        return tokens if self.reduced is None else torch.where(tokens >= 0, self.reduced.places[tokens.clamp(min=0)], -1)

    def whole(self, logits: Tensor) -> Tensor:
        """`guess`'s logits over the whole vocabulary, -inf where nothing is guessed."""
        return logits if self.reduced is None else self.reduced.widen(logits)

    def rank(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """How many ids `guess`'s logits put before each token, int64 [...], -1 stays -1; vocab_size for what is not guessed."""
        places = self.places_of(tokens)
        return torch.where((tokens >= 0) & (places < 0), self.vocab_size, rank_of(logits, places))

    @property
    def device(self) -> torch.device:
        return next(self.lm_head.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.lm_head.parameters()).dtype


class Heads(nn.Module):
    """Base of the families. Subclasses set `family`, build their parameters in `__init__(target, **options)` after
    `super().__init__(target)`, keep the options' values in `self.options`, and write `loss` and `ranks`.

    Every option of the constructor has a default and is a plain JSON value: that is what `heads={...}` of the training command
    sets and what is stored. Two-dimensional weights below a name `layers` are trained by Muon, the rest by Adam.
    """

    family: ClassVar[str]
    options: dict[str, Any]

    def __init__(self, target: TargetParts):
        super().__init__()
        self.target = target
        self.options = {}
        self.calibration: dict[str, Any] = {}  # what training measured, see specbench/train/heads.py; stored in heads.json

    @property
    def max_depth(self) -> int:
        """Depths that `ranks` judges: the number of heads, or of trained autoregressive steps."""
        raise NotImplementedError

    def loss(self, ids: Tensor, hidden: Tensor) -> Tensor:
        """Mean loss in nats per judged position, a scalar with a gradient.

        ids: int64 [rows, length], -1 where there is no text (always at a row's end). hidden: [rows, length, width], the
        target's LM head input there (what stands behind a row's end means nothing). Both on the heads' device.
        """
        raise NotImplementedError

    def ranks(self, ids: Tensor, hidden: Tensor) -> Tensor:
        """Where the text's token stood among the candidates: int64 [max_depth, rows, length], 0 = the first choice.

        Entry [k - 1, row, t] belongs to token t + 1 + k, drafted from h[t] and, where the family looks at them, from the text's
        tokens up to t + k; -1 where the row has no such token.
        """
        raise NotImplementedError

    @classmethod
    def from_published(cls, folder: Path, target: TargetParts) -> Heads | None:
        """Heads in a format that others publish, or None if this folder is not of that format."""
        return None

    @classmethod
    def published_depth(cls, folder: Path) -> int | None:
        """`max_depth` of such heads without reading a weight; None where that cannot be told."""
        return None


class TreeHeads(Heads):
    """Families that fill a static tree. level_by_level: whether that costs a draft forward a level, or one in all."""

    level_by_level: ClassVar[bool] = False

    def keep_options(self, num_heads: int, num_layers: int, own_lm_head: bool, decay: float, objective: str) -> None:
        """Check and keep the options that such families have in common. Raises ConfigError (heads.<option>)."""
        whole("heads.num_heads", num_heads, 1)
        whole("heads.num_layers", num_layers, 1)
        flag("heads.own_lm_head", own_lm_head)
        if own_lm_head and self.target.reduced is not None:
            raise ConfigError("heads.own_lm_head", True, "heads that guess among some ids share the target's LM head: false")
        values = (num_heads, num_layers, own_lm_head, decay, objective)
        self.options = dict(zip(("num_heads", "num_layers", "own_lm_head", "decay", "objective"), values, strict=True))

    def fill(self, hidden: Tensor, pending: int, levels: Sequence[Level], pick: Pick) -> None:
        """Say what each level is filled by, the first first, from h [1, width] and the pending token.

        pick(logits, level): fills a level from logits [rows, vocab], a row for each node of `level.above`, or one for all. It
        answers with the ids of the level's nodes in their order, for those whose next head looks at them: a list where the
        host has them, int64 on the device elsewhere; `TargetParts.embed` takes either.
        """
        raise NotImplementedError


def residual(x: Tensor, first: Any, skip: Any = None, beside: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """A block of heads: x + skip(z) + SiLU(first(z)), z being [x; scale * beside]; in one step where it runs natively.

    x [..., width], or one row [1, width] for all of beside [n, others].
    """
    if hasattr(type(first), "residual"):
        return first.residual(x, skip, beside, scale)
    if beside is None:
        joined = x
    else:
        x = x.expand(*beside.shape[:-1], -1)
        joined = torch.cat([x, beside * scale], dim=-1)
    return (x if skip is None else x + skip(joined)) + nn.functional.silu(first(joined))


def rank_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """How many ids score above each token: logits [..., vocab], tokens int64 [...], -1 stays -1. Returns int64 [...]."""
    own = logits.gather(-1, tokens.clamp(min=0)[..., None])
    # Among equal scores the smaller id comes first, as in argmax.
    before = (logits == own) & (torch.arange(logits.shape[-1], device=logits.device) < tokens[..., None])
    ranks = ((logits > own) | before).sum(-1)
    return torch.where(tokens >= 0, ranks, -1)


def shifted(ids: Tensor, by: int) -> Tensor:
    """ids [rows, length] moved `by` places to the left, -1 where nothing is left: entry t is token t + by."""
    return nn.functional.pad(ids[:, by:], (0, min(by, ids.shape[1])), value=-1)


AnyHeads = TypeVar("AnyHeads", bound=Heads)


def build_heads(cls: type[AnyHeads], target: TargetParts, options: dict[str, Any], key: str = "heads") -> AnyHeads:
    """New heads of a family. Raises ConfigError (`<key>.<option>`) for an option that the family does not take or refuses."""
    known = [name for name in inspect.signature(cls).parameters if name != "target"]
    for name, value in options.items():
        if name not in known:
            raise ConfigError(f"{key}.{name}", value, f"{cls.family} heads take {', '.join(known) or 'no options'}")
    made = cls(target, **options)
    missing = [name for name in known if name not in made.options]
    assert not missing, f"{cls.__name__} does not keep {missing} in self.options: they would not be stored"
    return made
