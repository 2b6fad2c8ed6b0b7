"""The typed shape of a run's configuration, and the range of each option: what a type cannot say.

Plain dataclasses, so that `run` works without hydra; `compose` registers the same classes as Hydra's schema. The `method` and
`baseline` nodes stay open: a plugin's constructor checks its own options.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from specbench.config.draft_errors import DraftErrors
from specbench.config.options import ABOVE_ZERO, ConfigError, check_ranges, number, one_of, option, text, whole

TEMPLATES = ("auto", "raw", "chat", "amusd")
_DTYPES = ("auto", "float32", "bfloat16", "float16")
_DEVICE = ("possible: auto, cpu, cuda, cuda:<number>", r"auto|cpu|cuda(:\d+)?")
_A_MODEL = "name a Hugging Face repository, a local folder, smollm2:target or builtin:"
_A_PATTERN = "possible: a pattern of wrong drafts, or null for a draft of its own"
_A_FOLDER = "possible: letters, digits and any of . _ + - (it names a folder), or null"
_A_SHARE = "a number above 0 and up to 1, or null (no cut)"


@dataclass
class PairConfig:
    """Which models: names of Hugging Face repositories, local folders, `builtin:<part>` or `smollm2:<part>`."""

    name: str = "custom"
    target: str = option("", text, f"{_A_MODEL}target")
    draft: str | None = option(None, text, f"{_A_MODEL}draft, or null for no draft", null=True)
    target_dtype: str = option("auto", one_of, *_DTYPES)
    draft_dtype: str = option("auto", one_of, *_DTYPES)
    target_device: str = option("auto", text, *_DEVICE)
    draft_device: str = option("auto", text, *_DEVICE)
    target_revision: str | None = None
    draft_revision: str | None = None
    # Instead of the draft's own words the target's, wrong where this says (draft_errors.py).
    draft_errors: str | None = option(None, text, _A_PATTERN, null=True)
    trust_remote_code: bool = False


@dataclass
class DataConfig:
    """Which prompts. `source`: auto (path, SPECBENCH_DATA, hub, stand-in), path, hub or standin."""

    name: str = option("humaneval", text, "name a data set")
    source: str = option("auto", one_of, "auto", "path", "hub", "standin")
    path: str | None = None
    limit: int | None = option(20, whole, 1, null="all samples")
    categories: list[str] | None = None
    seed: int = option(0, whole, 0)
    template: str = option("auto", one_of, *TEMPLATES)
    history: str = option("baseline", one_of, "baseline", "own", "dataset", "auto")
    max_prompt_tokens: int | None = option(None, whole, 1, null="the pair's context")
    # Unrelated text before each sample, up to a prompt of this length (padding.py).
    context_tokens: int | None = option(None, whole, 1, null="prompts as they are")
    # How answers are compared with the set's own, where it has them (grade.py).
    grade: str | None = option(None, one_of, None, "exact", "boxed", "number")
    # Facts of the data set itself (conf/data/<name>.yaml); users do not set these.
    file: str = ""  # file name looked for in data.path / SPECBENCH_DATA
    sha256: str | None = None
    hub_repo: str | None = None
    hub_revision: str | None = None
    hub_file: str | None = None
    hub_sha256: str | None = None
    text: str = ""  # the message of a row that has no turns; {field} stands for the row's own
    answer: str = ""  # the field with the reference answer; answer where this is empty
    masked: str = ""  # what stands in a published file for a text that each user fetches from its source


@dataclass
class DecodingConfig:
    """The sampling law and the limits, the same for both arms."""

    max_new_tokens: int = option(128, whole, 1)
    temperature: float = option(0.0, number, 0.0, math.inf, "0 (greedy) or a positive number")
    top_k: int | None = option(None, whole, 1, null="no cut")
    top_p: float | None = option(None, number, ABOVE_ZERO, 1.0, _A_SHARE, null=True)
    seed: int = option(0, whole, 0)


@dataclass
class MeasureConfig:
    """How often, in which mode, with which extras."""

    repeats: int = option(3, whole, 1)
    warmup: int = option(2, whole, 0)
    mode: str = option("paired", one_of, "paired", "aa")
    power: str = option("auto", one_of, "auto", "off")
    trace: bool = False
    seed: int = option(0, whole, 0)  # order of the arms


@dataclass
class EngineConfig:
    """How the models run."""

    # What computes the forwards of both arms and both models; auto: the fastest that can.
    backend: str = option("eager", one_of, "auto", "eager", "native")
    attention: str = option("sdpa", one_of, "sdpa", "eager")
    threads: int | None = option(None, whole, 1, null="chosen in the warm-up")  # CPU threads of each arm, chosen by speed
    # A worker that is silent this long counts as hung; a method's hook in the run's own process after ten times as long.
    timeout_seconds: float = option(60.0, number, ABOVE_ZERO, math.inf, "a positive number of seconds")


@dataclass
class SweepConfig:
    """How a sweep is kept."""

    # Its folder below <runs_dir>/sweeps; None: from the options that are swept and its jobs' hash.
    name: str | None = option(None, text, _A_FOLDER, r"[A-Za-z0-9][A-Za-z0-9._+-]*", null=True)


@dataclass
class RunConfig:
    """One run: one method x pair x dataset x settings."""

    pair: PairConfig = field(default_factory=PairConfig)
    data: DataConfig = field(default_factory=DataConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    method: Any = field(default_factory=dict)  # {"_target_": "specbench.methods.<name>.<Class>", ...options}
    baseline: Any = field(default_factory=dict)
    method_name: str = "autoregressive"  # the YAML's file name
    baseline_name: str = "autoregressive"
    runs_dir: str = option("runs", text, "name a folder for run folders")
    # Further packages that a method's `_target_` may name: it is code to run.
    allow_targets: list[str] = field(default_factory=list)
    resume: str | None = option(None, text, "name a run folder, or null", null=True)  # to go on with
    # Exactly this folder, continued if it is there (a sweep gives each job its own).
    run_folder: str | None = option(None, text, "name a run folder, or null", null=True)
    allow_mixed: bool = False  # go on although code, packages or machine changed since the run was started; the run says so
    # While another run measures on the same device of this host.
    device_lock: str = option("wait", one_of, "wait", "refuse", "off")
    sweep: SweepConfig = field(default_factory=SweepConfig)
    track: Any = field(default_factory=dict)  # where finished numbers are mirrored to; empty: nowhere


def validate(config: RunConfig) -> None:
    """Raises ConfigError for the first option outside its range. A plugin's constructor checks the plugin's own options."""
    check_ranges(config)
    if config.data.categories is not None and not config.data.categories:
        remedy = "selects nothing; name categories as [a,b], or null for all"
        raise ConfigError("data.categories", config.data.categories, remedy)
    pattern = config.pair.draft_errors
    if pattern is not None:
        DraftErrors.parse(pattern)
        if config.decoding.temperature:
            remedy = "the text that a draft replays is the target's greedy one: set decoding.temperature=0"
            raise ConfigError("pair.draft_errors", pattern, remedy)
    for name in ("method", "baseline"):
        node = getattr(config, name)
        if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
            raise ConfigError(f"{name}._target_", None, f"no {name} is chosen; it names a class as package.module.Class")
    if config.resume is not None and config.run_folder is not None:
        raise ConfigError("run_folder", config.run_folder, f"resume={config.resume} names the folder already; give one of them")


# Where a run is kept, mirrored and queued: part of the command, not of what is measured.
NOT_MEASURED = ("run_folder", "allow_mixed", "device_lock", "sweep", "track")
# Options that came later, with what every run had before there was a choice: such runs keep their hash.
LATER_OPTIONS: tuple[tuple[str, str, str | None], ...] = (
    ("engine", "backend", "eager"),
    ("data", "context_tokens", None),
    ("data", "grade", None),
    *(("data", name, "") for name in ("text", "masked", "answer")),
)


def as_dict(config: RunConfig) -> dict[str, Any]:
    """The configuration as plain containers (for run.json and its hash), without what is in `NOT_MEASURED`."""
    stored = {key: value for key, value in dataclasses.asdict(config).items() if key not in NOT_MEASURED}
    for section, name, before in LATER_OPTIONS:
        if stored[section][name] == before:
            del stored[section][name]
    return stored


def from_dict(stored: Mapping[str, Any]) -> RunConfig:
    """The inverse of `as_dict`; sections and options that are not in it keep their defaults. Raises ConfigError for others."""
    config = RunConfig()
    for key, value in stored.items():
        if not hasattr(config, key):
            raise ConfigError(key, value, "no such option in this version of specbench")
        section = getattr(config, key)
        if dataclasses.is_dataclass(section) and isinstance(value, Mapping):
            known = {part.name for part in dataclasses.fields(section)}
            for name in value:
                if name not in known:
                    raise ConfigError(f"{key}.{name}", value[name], "no such option in this version of specbench")
            value = dataclasses.replace(section, **value)  # type: ignore[type-var]
        setattr(config, key, value)
    return config
