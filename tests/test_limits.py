"""Options whose product no memory holds, and no patience awaits, are refused where the method is made."""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

import pytest
import yaml

from specbench.config.options import ConfigError, check_ranges
from specbench.config.paths import CONF_DIR
from specbench.config.schema import DataConfig, DecodingConfig, RunConfig
from specbench.method import create_method
from specbench.run.prepare import refuse_endless_prompts, refuse_more_threads

TOO_MUCH: list[tuple[str, dict[str, Any], str]] = [
    ("heads.eagle.Eagle", {"top_k": 100_000}, "top_k"),
    ("text.lookahead.Lookahead", {"window": 1000, "ngram": 50}, "window"),
    ("overlap.mirror_sd.MirrorSd", {"num_candidates": 100_000}, "num_candidates"),
    ("trees.rsd.RecursiveSpeculative", {"width": 1000, "draft_length": 50}, "width"),
    ("trees.spectr.SpecTr", {"num_chains": 1000, "draft_length": 50}, "num_chains"),
    ("overlap.ssd.Ssd", {"draft_length": 400, "budget": 400}, "budget"),
]
MUCH: list[tuple[str, dict[str, Any]]] = [
    ("heads.eagle.Eagle", {"top_k": 64}),
    ("text.lookahead.Lookahead", {"window": 15, "ngram": 5, "guesses": 15}),
    ("overlap.mirror_sd.MirrorSd", {"num_candidates": 800}),
    ("trees.rsd.RecursiveSpeculative", {"width": 400, "draft_length": 10}),
    ("trees.spectr.SpecTr", {"num_chains": 400, "draft_length": 10}),
    ("overlap.ssd.Ssd", {"draft_length": 10, "budget": 400}),
]
NODES = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((CONF_DIR / "method").glob("[!_]*.yaml"))}


def counts(node: dict[str, Any]) -> list[str]:
    """The options of a method that are whole numbers, as its constructor declares them; seeds have no most."""
    from importlib import import_module

    module, _, name = node["_target_"].rpartition(".")
    parameters = inspect.signature(getattr(import_module(module), name)).parameters
    return [key for key, said in parameters.items() if str(said.annotation).startswith("int") and key in node and key != "seed"]


@pytest.mark.parametrize("method", NODES)
def test_every_whole_number_of_every_method_has_a_most(method: str) -> None:
    node = {key: value for key, value in NODES[method].items() if key != "defaults"}
    node.pop("datastore", None)
    for key in counts(node):
        for value in (1_000_000_000, 10**15):
            with pytest.raises(ConfigError) as raised:
                create_method({**node, key: value})
            assert raised.value.key == f"method.{key}" and raised.value.value == value


def test_counts_are_found() -> None:
    """The twin: the test above looks at something."""
    assert counts(NODES["swift"]) == ["draft_length", "window", "patience"]
    assert {"budget", "draft_length", "draft_cores"} == set(counts(NODES["ssd"]))
    assert sum(bool(counts(node)) for node in NODES.values()) > 20


def test_an_alarm_too_short_to_be_answered_is_refused() -> None:
    """Once it rang inside of its own handler, without end."""
    config = RunConfig()
    for seconds, is_taken in ((1e-9, False), (0.0009, False), (0.001, True)):
        config.engine.timeout_seconds = seconds
        with contextlib.nullcontext() if is_taken else pytest.raises(ConfigError, match=r"engine\.timeout_seconds=.*0\.001"):
            check_ranges(config.engine, "engine.")


def test_threads_beyond_the_machine_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specbench.run.prepare.os.cpu_count", lambda: 4)
    for allowed in (None, 1, 4):
        refuse_more_threads(allowed)
    with pytest.raises(ConfigError, match=r"engine\.threads=1000: this machine has 4 cores: at most 4, or null"):
        refuse_more_threads(1000)


def test_prompts_longer_than_the_pair_are_refused_before_they_are_made() -> None:
    config = RunConfig(data=DataConfig(context_tokens=1921), decoding=DecodingConfig(max_new_tokens=128))
    with pytest.raises(ConfigError, match=r"data\.context_tokens=1921: the pair has 2048 positions, .*at most 1920"):
        refuse_endless_prompts(config, 2048)
    config.data.context_tokens = 1920
    refuse_endless_prompts(config, 2048)
    refuse_endless_prompts(config, None)


@pytest.mark.parametrize(("target", "options", "key"), TOO_MUCH)
def test_more_than_a_round_can_hold_is_refused_by_its_key(target: str, options: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as raised:
        create_method({"_target_": f"specbench.methods.{target}", **options})
    assert raised.value.key == f"method.{key}" and "4" in raised.value.remedy


@pytest.mark.parametrize(("target", "options"), MUCH)
def test_what_a_round_holds_is_taken(target: str, options: dict[str, Any]) -> None:
    create_method({"_target_": f"specbench.methods.{target}", **options})
