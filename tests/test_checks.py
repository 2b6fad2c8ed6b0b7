"""Range checks hold for configurations that were built in Python too, where nobody has checked the types."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from run_folders import composed

from specbench.config.compose import compose
from specbench.config.errors import schema_keys
from specbench.config.options import ConfigError
from specbench.config.paths import CONF_DIR
from specbench.config.schema import RunConfig, validate


def with_value(key: str, value: Any) -> RunConfig:
    config = composed("method=speculative")
    *sections, leaf = key.split(".")
    node: Any = config
    for section in sections:
        node = getattr(node, section)
    assert leaf in {field.name for field in dataclasses.fields(node)}
    setattr(node, leaf, value)
    return config


def test_what_ships_is_valid() -> None:
    validate(compose())


def test_a_configuration_without_a_method_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"pair\.target"):
        validate(RunConfig())
    with pytest.raises(ConfigError, match=r"method\._target_"):
        validate(dataclasses.replace(compose(), method={}))


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("decoding.max_new_tokens", [1, 10**6], [0, -1, True, 1.0, "8", None]),
        ("decoding.temperature", [0, 0.7, 2], [-0.1, math.inf, math.nan, "1", None, False]),
        ("decoding.top_p", [None, 0.9, 1], [0, 1.01, -0.5, math.nan, "0.9"]),
        ("decoding.top_k", [None, 1, 50], [0, 2.5, True]),
        ("decoding.seed", [0, 2**31], [-1, None, 0.5]),
        ("measure.repeats", [1], [0, None]),
        ("measure.warmup", [0], [-1]),
        ("measure.mode", ["paired", "aa"], ["ab", None]),
        ("measure.power", ["auto", "off"], [False, "on"]),
        ("engine.threads", [None, 1], [0]),
        ("engine.timeout_seconds", [0.5, 60], [0, -1, math.inf, math.nan]),
        ("data.limit", [None, 1], [0]),
        ("data.categories", [None, ["a"]], [[]]),
        ("pair.target", ["a/b"], ["", " ", None]),
        ("pair.draft", ["a/b", None], ["", 3]),
        ("pair.draft_device", ["auto", "cpu", "cuda", "cuda:1"], ["gpu", "cuda:", "cuda:x", None]),
        ("runs_dir", ["runs"], ["", None]),
        ("run_folder", [None, "runs/x"], ["", " ", 3]),
        ("sweep.name", [None, "a", "A-1_b.c+d"], ["", "-a", "a/b", "a b", 3]),
        ("device_lock", ["wait", "refuse", "off"], [False, None]),
        ("allow_mixed", [True, False], [None, 1, "true"]),
        ("measure.trace", [True, False], [None, 0]),
    ],
)
def test_ranges(key: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        validate(with_value(key, value))
    for value in bad:
        with pytest.raises(ConfigError) as raised:
            validate(with_value(key, value))
        assert raised.value.key == key
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("pair.target_device", "gpu", "pair.target_device='gpu': possible: auto, cpu, cuda, cuda:<number>"),
        ("decoding.top_p", 0, "decoding.top_p=0: possible: a number above 0 and up to 1, or null (no cut)"),
        ("data.limit", 0, "data.limit=0: possible: an integer of at least 1, or null (all samples)"),
        ("allow_mixed", 1, "allow_mixed=1: possible: true, false"),
    ],
)
def test_a_refusal_is_one_line_with_the_remedy(key: str, value: Any, line: str) -> None:
    with pytest.raises(ConfigError) as raised:
        validate(with_value(key, value))
    assert str(raised.value) == line


def test_options_that_contradict_each_other() -> None:
    config = with_value("pair.draft_errors", "every:2")
    validate(config)
    config.decoding.temperature = 1.0
    with pytest.raises(ConfigError, match=r"pair\.draft_errors='every:2'"):
        validate(config)
    config = with_value("resume", "runs/a")
    config.run_folder = "runs/b"
    with pytest.raises(ConfigError, match="run_folder='runs/b'"):
        validate(config)


def test_schema_keys_reach_into_sections() -> None:
    assert {"decoding.seed", "pair.target_dtype", "runs_dir"} <= set(schema_keys())
    assert "decoding" not in schema_keys()


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "null"), (True, "true"), (False, "false"), (0, "0"), (1, "1"), ("None", "'None'")]
)
def test_a_value_is_shown_as_it_is_written(value: object, shown: str) -> None:
    assert str(ConfigError("a.key", value, "why")) == f"a.key={shown}: why"


def test_the_options_page_names_every_choice() -> None:
    page = (CONF_DIR.parent / "docs" / "options.md").read_text(encoding="utf-8")
    for group in ("pair", "data", "engine"):
        names = [path.stem for path in (CONF_DIR / group).glob("[!_]*.yaml") if path.stem != "default"]
        assert len(names) > 3 and not [name for name in names if f"`{name}`" not in page]
