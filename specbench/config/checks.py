"""Range checks of a run's configuration: what a type cannot say. Each refusal names the key, the value and what is possible."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from specbench.config.draft_errors import DraftErrors
from specbench.config.options import ConfigError, number, one_of, text, whole
from specbench.config.schema import DataConfig, DecodingConfig, EngineConfig, MeasureConfig, PairConfig, RunConfig

_FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


def validate(config: RunConfig) -> None:
    """Raises ConfigError for the first option outside its range. A plugin's constructor checks the plugin's own options."""
    _check_pair(config.pair)
    _check_draft_errors(config)
    _check_data(config.data)
    _check_decoding(config.decoding)
    _check_measure(config.measure)
    _check_engine(config.engine)
    for name in ("method", "baseline"):
        node = getattr(config, name)
        if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
            raise ConfigError(f"{name}._target_", None, f"no {name} is chosen; it names a class as package.module.Class")
    text("runs_dir", config.runs_dir, "name a folder for run folders")
    _check_keeping(config)


def _check_keeping(config: RunConfig) -> None:
    for key in ("resume", "run_folder"):
        if getattr(config, key) is not None:
            text(key, getattr(config, key), "name a run folder, or null")
    if config.resume is not None and config.run_folder is not None:
        raise ConfigError("run_folder", config.run_folder, f"resume={config.resume} names the folder already; give one of them")
    one_of("device_lock", config.device_lock, "wait", "refuse", "off")
    if not isinstance(config.allow_mixed, bool):
        raise ConfigError("allow_mixed", config.allow_mixed, "possible: true, false")
    name = config.sweep.name
    if name is not None and (not isinstance(name, str) or not _FOLDER_NAME.fullmatch(name)):
        raise ConfigError("sweep.name", name, "possible: letters, digits and any of . _ + - (it names a folder), or null")


def _check_pair(pair: PairConfig) -> None:
    text("pair.target", pair.target, "name a Hugging Face repository, a local folder or builtin:target")
    if pair.draft is not None:
        text("pair.draft", pair.draft, "name a Hugging Face repository, a local folder or builtin:draft, or null for no draft")
    for role in ("target", "draft"):
        one_of(f"pair.{role}_dtype", getattr(pair, f"{role}_dtype"), "auto", "float32", "bfloat16", "float16")
        device = getattr(pair, f"{role}_device")
        if not isinstance(device, str) or not _DEVICE.fullmatch(device):
            raise ConfigError(f"pair.{role}_device", device, "possible: auto, cpu, cuda, cuda:<number>")


def _check_draft_errors(config: RunConfig) -> None:
    if config.pair.draft_errors is None:
        return
    text("pair.draft_errors", config.pair.draft_errors, "possible: a pattern of wrong drafts, or null for a draft of its own")
    DraftErrors.parse(config.pair.draft_errors)
    if config.decoding.temperature:
        remedy = "the text that a draft replays is the target's greedy one: set decoding.temperature=0"
        raise ConfigError("pair.draft_errors", config.pair.draft_errors, remedy)


def _check_data(data: DataConfig) -> None:
    text("data.name", data.name, "name a data set")
    one_of("data.source", data.source, "auto", "path", "hub", "standin")
    one_of("data.template", data.template, "auto", "raw", "chat", "amusd")
    one_of("data.history", data.history, "baseline", "own", "dataset")
    whole("data.limit", data.limit, 1, null="all samples")
    whole("data.seed", data.seed, 0)
    whole("data.max_prompt_tokens", data.max_prompt_tokens, 1, null="the pair's context")
    if data.categories is not None and not data.categories:
        raise ConfigError("data.categories", data.categories, "selects nothing; name categories as [a,b], or null for all")


def _check_decoding(decoding: DecodingConfig) -> None:
    whole("decoding.max_new_tokens", decoding.max_new_tokens, 1)
    number("decoding.temperature", decoding.temperature, 0.0, math.inf, "0 (greedy) or a positive number")
    whole("decoding.top_k", decoding.top_k, 1, null="no cut")
    if decoding.top_p is not None:
        remedy = "a number above 0 and up to 1, or null (no cut)"
        number("decoding.top_p", decoding.top_p, 0.0, 1.0, remedy)
        if decoding.top_p == 0:
            raise ConfigError("decoding.top_p", decoding.top_p, f"possible: {remedy}")
    whole("decoding.seed", decoding.seed, 0)


def _check_measure(measure: MeasureConfig) -> None:
    whole("measure.repeats", measure.repeats, 1)
    whole("measure.warmup", measure.warmup, 0)
    one_of("measure.mode", measure.mode, "paired", "aa")
    one_of("measure.power", measure.power, "auto", "off")
    whole("measure.seed", measure.seed, 0)


def _check_engine(engine: EngineConfig) -> None:
    one_of("engine.attention", engine.attention, "sdpa", "eager")
    whole("engine.threads", engine.threads, 1, null="chosen in the warm-up")
    remedy = "a positive number of seconds"
    number("engine.timeout_seconds", engine.timeout_seconds, 0.0, math.inf, remedy)
    if engine.timeout_seconds == 0:
        raise ConfigError("engine.timeout_seconds", engine.timeout_seconds, f"possible: {remedy}")
