"""The typed shape of `python -m specbench.train`'s configuration (conf/train.yaml), with the range of each option."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from specbench.config.options import ABOVE_ZERO, ConfigError, check_ranges, each, number, one_of, option, text, whole
from specbench.config.schema import DEVICE, PairConfig
from specbench.parts.heads.rounding import BFLOAT16_MANTISSA_BITS
from specbench.train.corpus.sources import STREAMS

FOUR_BITS = 4  # train.weight_bits; see `engine.blocks`
KINDS = ("target", "refine", "draft", "heads", "datastore", "acceptance_head")  # of parts
WITHOUT_PART = ("acceptance", "card")  # what can be asked for beside them
INITS = ("auto", "layers", "new", "draft")
SHORTEST_PROMPT = 32  # of the target's own text, in tokens; a row is at least twice as long
MOST_SEED = 2**63 - 1  # that every generator takes
MOST_IDS = 2**16  # of a tokenizer that is trained: the corpus is kept in two bytes an id
MOST_LAYERS, MOST_WIDTH, MOST_ROWS, MOST_LENGTH, MOST_THREADS = 1_024, 65_536, 65_536, 1_048_576, 1_024
MOST_TOKENS = 10**15
_SHARE = (number, 0.0, 1.0, "a share from 0 to 1")
_RATE = (number, ABOVE_ZERO, math.inf, "a positive number")
_FACTOR = (number, 0.0, math.inf, "0 or a positive number")


def _shares(key: str, value: object) -> None:
    """Refuse all but shares of the corpus' streams, not all of them 0."""
    remedy = f"give shares of {', '.join(STREAMS)}, such as {{code: 0.5, docs: 0.5}}"
    if not isinstance(value, Mapping) or not set(value) <= set(STREAMS):
        raise ConfigError(key, value, remedy)
    for name, share in value.items():
        number(f"{key}.{name}", share, *_FACTOR[1:])
    if not sum(value.values()) > 0:
        raise ConfigError(key, value, remedy)


def _node(key: str, value: object) -> None:
    """Refuse all but options with their values, and null."""
    if value is not None and not isinstance(value, dict):
        raise ConfigError(key, value, "give a node, such as {num_heads: 3}, or null")


@dataclass
class PartSettings:
    """One part that can be trained; `conf/train.yaml` names the parts and their settings.

    `kind`: target (language modelling on the corpus), refine (the target taught not to repeat itself), draft (distilled from
    the pair's target), heads (a method's heads on the target's hidden states), acceptance_head (of `stop=specdec_pp`, on the
    draft's) or datastore (the corpus itself, to look into).
    """

    kind: str = option("draft", one_of, *KINDS)
    layers: int = option(2, whole, 1, high=MOST_LAYERS)
    tokens: int = option(1_000_000, whole, 1, high=MOST_TOKENS)
    folder: str = option("draft", text, "name a folder")  # under train.out's default, specbench/models/builtin
    copy_layers: list[int] | None = None  # layers of the target that a draft starts from; None: spread evenly
    width: int | None = option(None, whole, 1, null="train.width", high=MOST_WIDTH)
    attention_heads: int | None = option(None, whole, 1, null="train.attention_heads", high=MOST_WIDTH)
    feed_forward: int | None = option(None, whole, 1, null="train.feed_forward", high=MOST_WIDTH)
    init: str | None = option(None, one_of, None, *INITS)  # None: train.init
    own_text: float = option(0.75, *_SHARE)  # of distillation rows the target's own continuations, the rest is corpus text
    length: int | None = option(None, whole, 2, null="train.length", high=MOST_LENGTH)  # tokens per sequence
    rows: int | None = option(None, whole, 1, null="train.rows", high=MOST_ROWS)  # sequences per step
    rate: float = option(1.0, *_RATE)  # factor on both learning rates
    num_ids: int | None = option(None, whole, 1, null="all")  # draft, heads: guess among the most frequent of the target's text


@dataclass
class TrainSettings:
    """`train.*`. None means: what the part says."""

    out: str | None = option(None, text, "name a folder, or null", null=True)
    work: str = option("runs/train", text, "name a folder")
    resume: bool = False
    seed: int = option(0, whole, 0, high=MOST_SEED)
    device: str = option("auto", text, *DEVICE)
    threads: int = option(2, whole, 1, high=MOST_THREADS)
    tokens: int | None = option(None, whole, 1, null="the part's", high=MOST_TOKENS)
    layers: int | None = option(None, whole, 1, null="the part's", high=MOST_LAYERS)
    num_ids: int | None = option(None, whole, 1, null="the part's")
    width: int = option(128, whole, 1, high=MOST_WIDTH)
    attention_heads: int = option(4, whole, 1, high=MOST_WIDTH)
    feed_forward: int = option(384, whole, 1, high=MOST_WIDTH)
    vocab_size: int = option(4096, whole, 257, high=MOST_IDS)  # the bytes and the end of a text at least
    max_positions: int = option(16_384, whole, 1, high=MOST_LENGTH)
    rows: int = option(16, whole, 1, high=MOST_ROWS)
    length: int = option(256, whole, 2, high=MOST_LENGTH)
    long_share: float = option(0.15, *_SHARE)
    matrix_lr: float = option(0.02, *_RATE)
    other_lr: float = option(0.004, *_RATE)
    decay: float = option(0.3, *_SHARE)
    optimizer: str = option("muon", one_of, "muon", "adam")
    compile: str = option("auto", one_of, "auto", "on", "off")
    mantissa_bits: int = option(7, whole, 1, high=BFLOAT16_MANTISSA_BITS)
    weight_bits: int = option(16, one_of, 16, FOUR_BITS)  # bfloat16, or blocks of four bits, trained as such
    autocast: bool | str = option("auto", one_of, "auto", True, False)
    shares: dict[str, float] = field(
        default_factory=lambda: {"functions": 0.5, "code": 0.25, "docs": 0.25}, metadata={"check": _shares}
    )
    source: str = option("machine", text, "machine, or a folder of your own")
    source_licence: str = ""
    max_package_bytes: int = option(4_000_000, whole, 1)
    evaluation_folders: list[str] = field(default_factory=list)
    temperatures: list[float] = field(
        default_factory=lambda: [0.0, 0.0, 0.7, 1.0], metadata={"check": lambda key, value: each(key, value, *_FACTOR)}
    )
    new_tokens: int = option(128, whole, 1, high=MOST_LENGTH)
    text: str = option("corpus", one_of, "corpus", "chat")  # what own text begins with: pieces of the corpus, or chats
    chat_tokens: int = option(300_000, whole, 1, high=MOST_TOKENS)
    chat_prompts: int = option(4_000, whole, 1)
    generate_rows: int = option(256, whole, 1, high=MOST_ROWS)
    pool_rows: int = option(2048, whole, 1)
    reuse: float = option(8.0, *_RATE)
    init: str = option("auto", one_of, *INITS)
    strength: float = option(20.0, *_FACTOR)
    mixed_back: float = option(0.6, *_SHARE)
    measure: bool = True
    card_samples: int = option(20, whole, 1)


@dataclass
class Settings:
    """The whole configuration of one training command."""

    part: str = ""
    pair: PairConfig = field(default_factory=lambda: PairConfig(target="builtin:target"))
    train: TrainSettings = field(default_factory=TrainSettings)
    parts: dict[str, PartSettings] = field(default_factory=dict)
    method: Any = field(default_factory=dict)  # part=heads: whose heads, as a run's method node
    method_name: str | None = None
    heads: Any = field(default=None, metadata={"check": _node})  # part=heads: options of the family
    allow_targets: list[str] = field(default_factory=list)  # part=heads: as a run's

    def chosen(self) -> PartSettings:
        """The settings of the chosen part, with `train.*` overrides. Raises ConfigError for an unknown part, and one that
        four bits cannot be kept of."""
        if self.part not in self.parts:
            raise _no_such_part(self.part, self.parts)
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


def _no_such_part(part: object, parts: Iterable[str]) -> ConfigError:
    return ConfigError("part", part, f"choose one of {', '.join(sorted([*parts, *WITHOUT_PART]))}")


def settings_from(plain: Any) -> Settings:
    """Settings from Hydra's configuration, or from plain containers, checked as far as that takes no model and no text.

    Raises ConfigError, and OmegaConf's errors for an unknown key and a wrong type.
    """
    if not plain.get("part"):  # the first part would write over the shipped target
        raise _no_such_part(None, plain.get("parts") or ())
    if isinstance(plain, DictConfig):  # as plain containers, or what `+key=value` appended would be taken in
        plain = OmegaConf.to_container(plain, resolve=True)
    settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Settings), plain))
    assert isinstance(settings, Settings)
    validate(settings)
    return settings


def validate(settings: Settings) -> None:
    """Raises ConfigError for the first option outside its range, and for those that do not go together."""
    train = settings.train
    check_ranges(settings)
    for folder in train.evaluation_folders:
        if not Path(folder).is_dir():
            raise ConfigError("train.evaluation_folders", folder, "no such folder: what must not be learnt is read there")
    if settings.part in WITHOUT_PART:
        return
    part = settings.chosen()
    if part.copy_layers is not None and len(part.copy_layers) != part.layers:
        remedy = f"parts.{settings.part}.copy_layers names {len(part.copy_layers)} of the target: as many, or null there"
        raise ConfigError("train.layers", part.layers, remedy)
    width, heads = part.width or train.width, part.attention_heads or train.attention_heads
    if (part.kind == "target" or (part.init or train.init) == "new") and width % (2 * heads):
        raise ConfigError("train.width", width, f"with train.attention_heads={heads}: take a multiple of {2 * heads}")
    own_text = part.kind == "refine" or (part.kind in ("draft", "heads", "acceptance_head") and part.own_text > 0)
    _, length = settings.batch_size
    if own_text and train.text == "corpus" and length < 2 * SHORTEST_PROMPT:
        remedy = f"a prompt of {SHORTEST_PROMPT} tokens at least and a reply must fit: {2 * SHORTEST_PROMPT} or more"
        raise ConfigError("train.length", length, remedy)
    if part.num_ids and train.text != "chat":
        raise ConfigError("train.num_ids", part.num_ids, "ids are counted in chats: train.text=chat, or null")
