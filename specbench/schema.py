"""The typed shape of a run's configuration, and its range checks.

Plain dataclasses, so that `run` works without hydra; `cli` registers the same classes as Hydra's schema. The `method` and
`baseline` nodes stay open: a plugin's constructor checks its own options.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any


class ConfigError(ValueError):
    """A wrong option: one line that names the key, the value and the remedy."""

    def __init__(self, key: str, value: object, remedy: str):
        super().__init__(f"{key}={value!r}: {remedy}")
        self.key, self.value, self.remedy = key, value, remedy


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
    resume: str | None = None


def as_dict(config: RunConfig) -> dict[str, Any]:
    """The configuration as plain containers (for run.json and its hash)."""
    return dataclasses.asdict(config)
