"""The typed shape of `python -m specbench.train`'s configuration (conf/train.yaml)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from specbench.config.options import ConfigError
from specbench.config.schema import PairConfig
from specbench.parts.heads.rounding import BFLOAT16_MANTISSA_BITS

FOUR_BITS = 4  # train.weight_bits; see `engine.blocks`


@dataclass
class PartSettings:
    """One part that can be trained; `conf/train.yaml` names the parts and their settings.

    `kind`: target (language modelling on the corpus), refine (the target taught not to repeat itself), draft (distilled from
    the pair's target), heads (a method's heads on the target's hidden states), acceptance_head (of `stop=specdec_pp`, on the
    draft's) or datastore (the corpus itself, to look into).
    """

    kind: str = "draft"
    layers: int = 2
    tokens: int = 1_000_000
    folder: str = "draft"  # name under train.out's default, specbench/models/builtin
    copy_layers: list[int] | None = None  # layers of the target that a draft starts from; None: spread evenly
    width: int | None = None  # None: train.width; also attention_heads and feed_forward
    attention_heads: int | None = None
    feed_forward: int | None = None
    init: str | None = None  # None: train.init
    own_text: float = 0.75  # share of distillation rows that are the target's own continuations, the rest is corpus text
    length: int | None = None  # tokens per sequence; None: train.length
    rows: int | None = None  # sequences per step; None: train.rows
    rate: float = 1.0  # factor on both learning rates
    num_ids: int | None = None  # draft, heads: guess among so many ids, the most frequent of the target's text; None: all


@dataclass
class TrainSettings:
    """`train.*`. None means: what the part says."""

    out: str | None = None
    work: str = "runs/train"
    resume: bool = False
    seed: int = 0
    device: str = "auto"
    threads: int = 2
    tokens: int | None = None
    layers: int | None = None
    num_ids: int | None = None
    width: int = 128
    attention_heads: int = 4
    feed_forward: int = 384
    vocab_size: int = 4096
    max_positions: int = 16_384
    rows: int = 16
    length: int = 256
    long_share: float = 0.15
    matrix_lr: float = 0.02
    other_lr: float = 0.004
    decay: float = 0.3
    optimizer: str = "muon"
    compile: str = "auto"
    mantissa_bits: int = 7
    weight_bits: int = 16
    autocast: bool | str = "auto"
    shares: dict[str, float] = field(default_factory=lambda: {"functions": 0.5, "code": 0.25, "docs": 0.25})
    source: str = "machine"
    source_licence: str = ""
    max_package_bytes: int = 4_000_000
    evaluation_folders: list[str] = field(default_factory=list)
    temperatures: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.7, 1.0])
    new_tokens: int = 128
    text: str = "corpus"  # what own text begins with: corpus (pieces of it) or chat (`specbench.train.chats`)
    chat_tokens: int = 300_000
    chat_prompts: int = 4_000
    generate_rows: int = 256
    pool_rows: int = 2048
    reuse: float = 8.0
    init: str = "auto"
    strength: float = 20.0
    mixed_back: float = 0.6
    measure: bool = True
    card_samples: int = 20


@dataclass
class Settings:
    """The whole configuration of one training command."""

    part: str = "target"
    pair: PairConfig = field(default_factory=PairConfig)
    train: TrainSettings = field(default_factory=TrainSettings)
    parts: dict[str, PartSettings] = field(default_factory=dict)
    method: dict[str, Any] = field(default_factory=dict)  # part=heads: whose heads, as a run's method node
    method_name: str = ""
    heads: dict[str, Any] = field(default_factory=dict)  # part=heads: options of the family
    allow_targets: list[str] = field(default_factory=list)  # part=heads: as a run's

    def chosen(self) -> PartSettings:
        """The settings of the chosen part, with `train.*` overrides. Raises ConfigError for an unknown part, and one that
        four bits cannot be kept of."""
        if self.part not in self.parts:
            raise ConfigError("part", self.part, f"choose one of {', '.join(sorted([*self.parts, 'acceptance', 'card']))}")
        part = self.parts[self.part]
        changes = {
            name: getattr(self.train, name) for name in ("tokens", "layers", "num_ids") if getattr(self.train, name) is not None
        }
        chosen = PartSettings(**(vars(part) | changes))
        in_blocks = chosen.kind in ("heads", "acceptance_head") or chosen.num_ids  # the rest is written by transformers
        if self.train.weight_bits == FOUR_BITS and not in_blocks:
            remedy = "blocks are kept of heads and of drafts over some ids (train.num_ids) alone: 16"
            raise ConfigError("train.weight_bits", FOUR_BITS, remedy)
        return chosen

    @property
    def batch_size(self) -> tuple[int, int]:
        """Rows of a batch, and tokens of a row, by the chosen part."""
        part = self.chosen()
        return part.rows or self.train.rows, part.length or self.train.length


def settings_from(plain: dict[str, Any]) -> Settings:
    """Settings from Hydra's plain containers. Raises ConfigError for an unknown key and for what would fail only at the end."""
    if not plain.get("part"):  # the first part would write over the shipped target
        raise ConfigError(
            "part", None, f"choose one of {', '.join(sorted([*(plain.get('parts') or {}), 'acceptance', 'card']))}"
        )
    known = vars(TrainSettings())
    for name in plain.get("train") or {}:
        if name not in known:
            raise ConfigError(f"train.{name}", plain["train"][name], f"no such option; there are {', '.join(sorted(known))}")
    bits = (plain.get("train") or {}).get("mantissa_bits", BFLOAT16_MANTISSA_BITS)
    if bits not in range(1, BFLOAT16_MANTISSA_BITS + 1):
        raise ConfigError("train.mantissa_bits", bits, f"choose 1 to {BFLOAT16_MANTISSA_BITS}, the bits that bfloat16 has")
    weight_bits = (plain.get("train") or {}).get("weight_bits", 16)
    if weight_bits not in (FOUR_BITS, 16):
        raise ConfigError("train.weight_bits", weight_bits, "choose 16 (bfloat16) or 4 (blocks of four bits, trained as such)")
    return Settings(
        part=plain["part"],
        pair=PairConfig(**(plain.get("pair") or {})),
        train=TrainSettings(**(plain.get("train") or {})),
        method=plain.get("method") or {},
        method_name=plain.get("method_name") or "",
        heads=plain.get("heads") or {},
        allow_targets=plain.get("allow_targets") or [],
        parts={name: PartSettings(**(value or {})) for name, value in (plain.get("parts") or {}).items()},
    )
