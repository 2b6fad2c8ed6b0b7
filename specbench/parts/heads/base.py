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
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn

from specbench.config.options import ConfigError, flag, whole
from specbench.engine.reduced import ReducedHead
from specbench.parts.heads.rounding import BFLOAT16_MANTISSA_BITS, round_mantissa

if TYPE_CHECKING:
    from specbench.config.specs import ModelSpec
    from specbench.engine.runtime import Runtime
    from specbench.parts.shapes.plan import Level

Candidates = Callable[[Tensor, int], Tensor]

FORMAT_VERSION = 1
DESCRIPTION, WEIGHTS = "heads.json", "heads.safetensors"
IDS = "reduced_ids"  # beside the weights, of heads that guess among some ids: int32, ascending
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
        return cls(config, head.weight.shape[1], head.weight.shape[0], head, embedding, norm, sha256)

    def over(self, ids: Sequence[int] | Tensor) -> TargetParts:
        """The same for heads that guess among `ids` alone. Raises ValueError for ids that are no such map."""
        return replace(self, reduced=ReducedHead.of(self.lm_head, ids))

    @property
    def num_guessed(self) -> int:
        """Ids that are guessed among."""
        return self.vocab_size if self.reduced is None else len(self.reduced.ids)

    def guess(self, hidden: Tensor) -> Tensor:
        """Logits of the ids that are guessed among, [..., num_guessed], from hidden [..., width]."""
        return self.lm_head(hidden) if self.reduced is None else self.reduced.linear(hidden)

    def ids_of(self, places: Tensor) -> Tensor:
        """The ids at places of `guess`'s last dimension, int64 [...]."""
        return places if self.reduced is None else self.reduced.ids[places]

    def whole(self, logits: Tensor) -> Tensor:
        """`guess`'s logits over the whole vocabulary, -inf where nothing is guessed."""
        return logits if self.reduced is None else self.reduced.widen(logits)

    def rank(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """How many ids `guess`'s logits put before each token, int64 [...], -1 stays -1; vocab_size for what is not guessed."""
        if self.reduced is None:
            return rank_of(logits, tokens)
        places = torch.where(tokens >= 0, self.reduced.places[tokens.clamp(min=0)], -1)
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

    def fill(self, hidden: Tensor, pending: int, levels: Sequence[Level], candidates: Candidates) -> Tensor:
        """Tokens of all nodes of the levels, int64 [nodes], from h [width] and the pending token.

        candidates(logits, depth): the ids by rank [rows, width of the tree] that logits [rows, vocab] rank first.
        """
        raise NotImplementedError


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


def save_heads(heads: Heads, folder: Path, mantissa_bits: int = BFLOAT16_MANTISSA_BITS) -> None:
    """Write bfloat16 safetensors (mantissa_bits: see `rounding.round_mantissa`) and `heads.json`.

    Raises RuntimeError if two parameters share memory.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: round_mantissa(value.detach().to("cpu", torch.bfloat16), mantissa_bits)
        for name, value in heads.state_dict().items()
    }
    places = [p.data_ptr() for _, p in heads.named_parameters(remove_duplicate=False)]
    if len(set(places)) < len(places):
        raise RuntimeError(f"{heads.family} heads share parameters: each needs its own")
    target = heads.target
    if target.reduced is not None:
        state[IDS] = target.reduced.ids.to("cpu", torch.int32)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)  # written through a private temporary file
    description = {
        "format_version": FORMAT_VERSION,
        "family": heads.family,
        "options": heads.options,
        "target": {"sha256": target.sha256, "width": target.width, "vocab_size": target.vocab_size},
        "num_parameters": sum(p.numel() for p in heads.parameters()),
        "calibration": heads.calibration,
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n")


def load_heads(
    cls: type[AnyHeads], folder: Path, target: TargetParts, key: str = "method.heads", whose: str = "pair.target"
) -> AnyHeads:
    """The heads in a folder, frozen, on the target's device and in its dtype. whose: the option that names this target.

    Raises ConfigError naming `key` when they are of another family, belong to another target (weights' hash, where both are
    known; width; vocabulary), or do not fit their own description.
    """
    from safetensors.torch import load_file

    name = str(folder)
    if not (folder / DESCRIPTION).is_file():
        published = cls.from_published(folder, target)
        if published is None:
            raise ConfigError(key, name, f"no {DESCRIPTION} in it: give a folder made by python -m specbench.train")
        return _ready(published, target)  # type: ignore[return-value]
    stored = _description(cls, folder, target.sha256, key, whose)
    belongs = stored["target"]
    for what in ("width", "vocab_size"):
        if belongs[what] != getattr(target, what):
            raise ConfigError(key, name, f"trained for a target of {what} {belongs[what]}; {whose} has {getattr(target, what)}")
    try:
        state = load_file(folder / WEIGHTS)
        if IDS in state:
            target = target.over(state.pop(IDS))
        heads = build_heads(cls, target, stored["options"])
        heads.load_state_dict(state)
    except ConfigError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(key, name, f"weights do not fit {DESCRIPTION}: {' '.join(str(error).split())[:200]}") from error
    for part, weight in heads.named_parameters():
        if not weight.isfinite().all():
            raise ConfigError(key, name, f"broken weights: {part} holds NaN or infinity")
    heads.calibration = stored.get("calibration", {})
    return _ready(heads, target)


def _description(cls: type[Heads], folder: Path, sha256: str | None, key: str, model: str = "pair.target") -> dict[str, Any]:
    """What heads say of themselves, when they are of the family and of a target with these weights."""
    name, stored = str(folder), json.loads((folder / DESCRIPTION).read_text())
    if stored.get("format_version") != FORMAT_VERSION:
        raise ConfigError(key, name, f"format version {stored.get('format_version')}, this specbench reads {FORMAT_VERSION}")
    if stored["family"] != cls.family:
        raise ConfigError(key, name, f"these are {stored['family']} heads; the method needs {cls.family} heads")
    whose = stored["target"]["sha256"]
    if None not in (whose, sha256) and whose != sha256:
        remedy = f"trained for a target of sha256 {whose}; {model} has {sha256}: train heads for it"
        raise ConfigError(key, name, remedy)
    return dict(stored)


def look_up_heads(cls: type[Heads], name: str | None, target: ModelSpec) -> None:
    """What a drafter's `look_up` calls: whether `method.heads` names heads that are there and this target's.

    Raises ConfigError.
    """
    from specbench.parts.heads.files import KEY, find_heads, target_hash

    identity = target_hash(target)
    folder = find_heads(cls.family, name, target.name, sha256=identity)
    if (folder / DESCRIPTION).is_file():
        _description(cls, folder, identity, KEY)


def _ready(heads: AnyHeads, target: TargetParts) -> AnyHeads:
    return heads.to(target.device, target.dtype).eval().requires_grad_(False)


def open_heads(cls: type[AnyHeads], name: str | None, runtime: Runtime) -> tuple[AnyHeads, Path]:
    """What a method's `open` calls: the heads that `method.heads` names, for the runtime's target, and their folder.

    Raises ConfigError naming method.heads.
    """
    from specbench.parts.heads.files import find_heads, target_hash

    spec = runtime.pair.target
    identity = target_hash(spec)
    folder = find_heads(cls.family, name, spec.name, sha256=identity)
    try:
        target = TargetParts.of(runtime.target.module, identity)
    except (ValueError, AttributeError) as error:
        raise ConfigError("pair.target", spec.name, f"takes no heads: {error}") from error
    heads, native = load_heads(cls, folder, target), runtime.target.native
    if native is not None:
        from specbench.engine.backends.native.linear import NativeLinear, run_natively

        run_natively(heads, native)
        lm_head = NativeLinear(cast(nn.Linear, target.lm_head), native, is_lm_head=True)
        heads.target = replace(heads.target, lm_head=lm_head)
        if heads.target.reduced is not None:
            run_natively(heads.target.reduced, native)
    return heads, folder
