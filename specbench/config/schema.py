"""The typed shape of a run's configuration, the range of each option, which a type cannot say, and what it means.

Plain dataclasses, so that `run` works without hydra; `compose` registers the same classes as Hydra's schema. The `method` and
`baseline` nodes stay open: a plugin's constructor checks its own options. `--help` says of a field what stands above it.
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
DATA_FACTS = ("file", "sha256", "hub_repo", "hub_revision", "hub_file", "hub_sha256", "text", "answer", "masked")
FILLED_IN = ("method_name", "baseline_name", "notes")  # by composing; users do not set these
_DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICE = ("possible: auto, cpu, cuda, cuda:<number>", r"auto|cpu|cuda(:\d+)?")
_A_MODEL = "name a Hugging Face repository, a local folder, smollm2:target or builtin:"
_A_PATTERN = "possible: a pattern of wrong drafts, or null for a draft of its own"
_A_FOLDER = "possible: letters, digits and any of . _ + - (it names a folder), or null"
_A_SHARE = "a number above 0 and up to 1, or null (no cut)"


@dataclass
class PairConfig:
    """Which models: names of Hugging Face repositories, local folders, `builtin:<part>` or `smollm2:<part>`."""

    # What the pair is called in tables and run folders.
    name: str = "custom"
    # The target model: a repository of the Hub, a folder, or a part of a pair that ships.
    target: str = option("", text, f"{_A_MODEL}target")
    # The draft model, named like the target; null: none.
    draft: str | None = option(None, text, f"{_A_MODEL}draft, or null for no draft", null=True)
    # auto: float32 on a CPU, bfloat16 on CUDA.
    target_dtype: str = option("auto", one_of, *_DTYPES)
    # The same of the draft model.
    draft_dtype: str = option("auto", one_of, *_DTYPES)
    # auto: the first CUDA device, else the CPU.
    target_device: str = option("auto", text, *DEVICE)
    # auto: a second CUDA device where there is one.
    draft_device: str = option("auto", text, *DEVICE)
    # Commit, branch or tag of a repository; null: its newest.
    target_revision: str | None = None
    # The same of the draft model's.
    draft_revision: str | None = None
    # A pattern: the draft replays the target's text, wrong where it says (draft_errors.py); null: its own words.
    draft_errors: str | None = option(None, text, _A_PATTERN, null=True)
    # Whether code that comes with a model may run.
    trust_remote_code: bool = False


@dataclass
class DataConfig:
    """Which prompts. `source`: auto (path, SPECBENCH_DATA, hub, stand-in), path, hub or standin."""

    # The data set.
    name: str = option("humaneval", text, "name a data set")
    # auto: data.path, SPECBENCH_DATA, the Hub, the stand-in that ships, whichever is there first.
    source: str = option("auto", one_of, "auto", "path", "hub", "standin")
    # A file or a folder of your own; null: where source says.
    path: str | None = None
    # Samples at most; null: all.
    limit: int | None = option(20, whole, 1, null="all samples")
    # Samples of these alone; null: all.
    categories: list[str] | None = None
    # Of the draw, where limit takes some.
    seed: int = option(0, whole, 0)
    # How a prompt is written; auto: the tokenizer's chat template where it has one.
    template: str = option("auto", one_of, *TEMPLATES)
    # Whose earlier answers a later turn follows: the baseline's, each arm's own, the data set's.
    history: str = option("baseline", one_of, "baseline", "own", "dataset", "auto")
    # Longer prompts are left out; null: the pair's context decides.
    max_prompt_tokens: int | None = option(None, whole, 1, null="the pair's context")
    # Unrelated text before each sample, up to a prompt of this length (padding.py); null: none.
    context_tokens: int | None = option(None, whole, 1, null="prompts as they are")
    # How answers are compared with the set's own, where it has them (grade.py); null: not at all.
    grade: str | None = option(None, one_of, None, "exact", "boxed", "number")
    # Facts of the data set itself (conf/data/<name>.yaml, DATA_FACTS); users do not set these.
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

    # Tokens of an answer at most.
    max_new_tokens: int = option(128, whole, 1)
    # 0: greedy.
    temperature: float = option(0.0, number, 0.0, math.inf, "0 (greedy) or a positive number")
    # Tokens that may be drawn at each position; null: all.
    top_k: int | None = option(None, whole, 1, null="no cut")
    # Share of the probability that may be drawn; null: all.
    top_p: float | None = option(None, number, ABOVE_ZERO, 1.0, _A_SHARE, null=True)
    # Of the noise that tokens are drawn with.
    seed: int = option(0, whole, 0)


@dataclass
class MeasureConfig:
    """How often, in which mode, with which extras."""

    # Passes over the prompts.
    repeats: int = option(3, whole, 1)
    # Prompts outside the evaluated ones, before the clock starts.
    warmup: int = option(2, whole, 0)
    # paired, or aa: the baseline against itself, which is this machine's noise floor.
    mode: str = option("paired", one_of, "paired", "aa")
    # Energy in a pass of its own; auto: where something can be read.
    power: str = option("auto", one_of, "auto", "off")
    # Also write trace.json, a timeline for ui.perfetto.dev.
    trace: bool = False
    # Of the order of the arms.
    seed: int = option(0, whole, 0)


@dataclass
class EngineConfig:
    """How the models run."""

    # What computes the forwards of both arms and both models; auto: the fastest that can.
    backend: str = option("eager", one_of, "auto", "eager", "native", "compiled", "graph")
    # Which of transformers' own forms of attention.
    attention: str = option("sdpa", one_of, "sdpa", "eager")
    # CPU threads of each arm; null: chosen by speed in the warm-up.
    threads: int | None = option(None, whole, 1, null="chosen in the warm-up")
    # A worker that is silent this long counts as hung; a method's hook in the run's own process after ten times as long.
    timeout_seconds: float = option(60.0, number, 0.001, math.inf, "a positive number of seconds, 0.001 at least")


@dataclass
class SweepConfig:
    """How a sweep is kept."""

    # Its folder below <runs_dir>/sweeps; null: from the options that are swept and its jobs' hash.
    name: str | None = option(None, text, _A_FOLDER, r"[A-Za-z0-9][A-Za-z0-9._+-]*", null=True)
    # Leave out jobs whose method needs what the pair has not (a draft model, heads, a datastore), and say so; else they fail.
    skip_unfit: bool = False


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
    # Where run folders go.
    runs_dir: str = option("runs", text, "name a folder for run folders")
    # Further packages that a method's `_target_` may name: it is code to run.
    allow_targets: list[str] = field(default_factory=list)
    # A run folder that was cut off, to go on with.
    resume: str | None = option(None, text, "name a run folder, or null", null=True)
    # Exactly this folder, continued if it is there (a sweep gives each job its own).
    run_folder: str | None = option(None, text, "name a run folder, or null", null=True)
    # Go on although code, packages or machine changed since the run was started; the run says so.
    allow_mixed: bool = False
    # What to do while another run measures on a device of this one: wait for its end, refuse, or off (beside it).
    device_lock: str = option("wait", one_of, "wait", "refuse", "off")
    sweep: SweepConfig = field(default_factory=SweepConfig)
    track: Any = field(default_factory=dict)  # where finished numbers are mirrored to; empty: nowhere
    notes: list[str] = field(default_factory=list)  # what composing the options has to say of the run


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
NOT_MEASURED = ("run_folder", "allow_mixed", "device_lock", "sweep", "track", "notes")
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
