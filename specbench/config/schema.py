"""The typed shape of a run's configuration, and its range checks.

Plain dataclasses, so that `run` works without hydra; `cli` registers the same classes as Hydra's schema. The `method` and
`baseline` nodes stay open: a plugin's constructor checks its own options.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from specbench.config.options import ConfigError


@dataclass
class PairConfig:
    """Which models: names of Hugging Face repositories, local folders, or `builtin:<part>`."""

    name: str = "custom"
    target: str = ""
    draft: str | None = None
    target_dtype: str = "auto"  # auto | float32 | bfloat16 | float16
    draft_dtype: str = "auto"
    target_device: str = "auto"  # auto | cpu | cuda | cuda:<n>
    draft_device: str = "auto"
    target_revision: str | None = None
    draft_revision: str | None = None
    draft_errors: str | None = None  # instead of the draft's own words the target's, wrong where this says (draft_errors.py)
    trust_remote_code: bool = False


@dataclass
class DataConfig:
    """Which prompts. `source`: auto (path, SPECBENCH_DATA, hub, stand-in), path, hub or standin."""

    name: str = "humaneval"
    source: str = "auto"
    path: str | None = None
    limit: int | None = 20
    categories: list[str] | None = None
    seed: int = 0
    template: str = "auto"  # auto | raw | chat | amusd
    history: str = "baseline"  # baseline | own | dataset
    max_prompt_tokens: int | None = None
    # Facts of the data set itself (conf/data/<name>.yaml); users do not set these.
    file: str = ""  # file name looked for in data.path / SPECBENCH_DATA
    sha256: str | None = None
    hub_repo: str | None = None
    hub_revision: str | None = None
    hub_file: str | None = None
    hub_sha256: str | None = None


@dataclass
class DecodingConfig:
    """The sampling law and the limits, the same for both arms."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0


@dataclass
class MeasureConfig:
    """How often, in which mode, with which extras."""

    repeats: int = 3
    warmup: int = 2
    mode: str = "paired"  # paired | aa
    power: str = "auto"  # auto | off
    trace: bool = False
    seed: int = 0  # order of the arms


@dataclass
class EngineConfig:
    """How the models run."""

    attention: str = "sdpa"  # sdpa | eager
    threads: int | None = None  # CPU threads of each arm; None: chosen by speed in the warm-up
    timeout_seconds: float = 60.0  # a worker that is silent this long counts as hung


@dataclass
class SweepConfig:
    """How a sweep is kept."""

    name: str | None = None  # its folder below <runs_dir>/sweeps; None: from the options that are swept and its jobs' hash


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
    runs_dir: str = "runs"
    allow_targets: list[str] = field(
        default_factory=list
    )  # further packages that a method's `_target_` may name: it is code to run
    resume: str | None = None  # a run folder to go on with
    run_folder: str | None = None  # exactly this folder, continued if it is there (a sweep gives each job its own)
    allow_mixed: bool = False  # go on although code, packages or machine changed since the run was started; the run says so
    device_lock: str = "wait"  # while another run measures on the same device of this host: wait | refuse | off
    sweep: SweepConfig = field(default_factory=SweepConfig)
    track: Any = field(default_factory=dict)  # where finished numbers are mirrored to; empty: nowhere


# Where a run is kept, mirrored and queued: part of the command, not of what is measured.
NOT_MEASURED = ("run_folder", "allow_mixed", "device_lock", "sweep", "track")


def as_dict(config: RunConfig) -> dict[str, Any]:
    """The configuration as plain containers (for run.json and its hash), without what is in `NOT_MEASURED`."""
    return {key: value for key, value in dataclasses.asdict(config).items() if key not in NOT_MEASURED}


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
