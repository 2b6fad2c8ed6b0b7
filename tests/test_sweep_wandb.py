"""The W&B sweeps that ship: every command line that an agent would start is one that specbench takes.

The server's part, choosing values, is done here; what a sweep file means and how values become a command line is W&B's code.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_folders import BUILTIN
from wandb_files import offline_runs

from specbench.config.compose import compose
from specbench.config.paths import CONF_DIR
from specbench.method import create_method

FILES = sorted((CONF_DIR / "sweep").glob("*.yaml"))


def load(path: Path) -> dict[str, Any]:
    """As `wandb sweep` reads it: a wrong parameter raises."""
    from wandb.apis.public.sweeps import _validate_config_and_fill_distribution
    from wandb.sdk.launch.sweeps.utils import load_sweep_config

    config = load_sweep_config(str(path))
    assert config is not None
    return dict(_validate_config_and_fill_distribution(config))


def values(parameter: dict[str, Any]) -> list[Any]:
    """Every value of a grid's parameter; of a search's, both ends and the middle."""
    if "value" in parameter:
        return [parameter["value"]]
    if "values" in parameter:
        return list(parameter["values"])
    assert parameter["distribution"] == "int_uniform", "a value that Hydra would read as another type"
    low, high = parameter["min"], parameter["max"]
    return [low, (low + high) // 2, high]


def command_lines(config: dict[str, Any]) -> list[list[str]]:
    """Each combination as the agent starts it: the macros of `command` filled in."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    names = list(config["parameters"])
    lines = []
    for chosen in itertools.product(*(values(config["parameters"][name]) for name in names)):
        args = create_sweep_command_args({"args": {name: {"value": v} for name, v in zip(names, chosen, strict=True)}})
        macros = {"env": ["/usr/bin/env"], "interpreter": [sys.executable], "program": [config["program"]], **args}
        line: list[str] = []
        for word in create_sweep_command(copy.copy(config["command"])):
            line += macros[word[2:-1]] if word.startswith("${") else [word]
        lines.append(line)
    return lines


def options(line: list[str]) -> list[str]:
    assert line[:4] == ["/usr/bin/env", sys.executable, "-m", "specbench"]
    return line[4:]


def covering(lines: list[list[str]]) -> list[list[str]]:
    """Some of the lines, such that every option of any of them is in one."""
    left = {option for line in lines for option in line}
    chosen = []
    while left:
        chosen.append(max(lines, key=lambda line: len(left & set(line))))
        left -= set(chosen[-1])
    return chosen


@pytest.mark.parametrize("choose", [covering, pytest.param(list, marks=pytest.mark.deep)], ids=["every value", "all"])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_combination_composes(path: Path, choose: Callable[[list[list[str]]], list[list[str]]]) -> None:
    lines = command_lines(load(path))
    assert len(lines) >= 4
    assert len({tuple(line) for line in lines}) == len(lines)
    for line in choose(lines):
        run = compose(options(line))
        assert run.track["_target_"] == "specbench.track.wandb.WandbTracker", "the sweep would wait for numbers for ever"
        create_method(run.method)  # its options are in range
        for option in options(line):
            name, _, value = option.partition("=")
            if name.startswith("method."):
                assert run.method[name.partition(".")[2]] == json.loads(value)


def test_what_the_sweeps_cover() -> None:
    grid = load(CONF_DIR / "sweep" / "grid.yaml")
    assert set(grid["parameters"]) >= {"method", "data", "method.draft_length"}
    assert grid["method"] == "grid"
    search = load(CONF_DIR / "sweep" / "amusd_lookahead.yaml")
    assert search["method"] == "bayes"
    assert search["metric"]["name"] == "speedup"
    assert set(values(search["parameters"]["method.max_lookahead"])) == {4, 18, 32}


@pytest.mark.parametrize(
    ("parameters", "error"),
    [
        ({"method.draft_lenght": {"values": [2]}, "method": {"value": "speculative"}}, "draft_lenght"),
        ({"method.draft_length": {"value": None}, "method": {"value": "speculative"}}, "draft_length"),
        ({"method": {"values": ["speculativ"]}}, "speculativ"),
    ],
)
def test_a_wrong_sweep_is_caught(parameters: dict[str, Any], error: str, tmp_path: Path) -> None:
    """The second: W&B writes a null as the text None, which is no draft length."""
    config = yaml.safe_load((CONF_DIR / "sweep" / "grid.yaml").read_text()) | {"parameters": parameters}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(Exception, match=error):
        for line in command_lines(load(tmp_path / "sweep.yaml")):
            create_method(compose(options(line)).method)


LONG = pytest.mark.skipif(not os.environ.get("SPECBENCH_LONG_TESTS"), reason="many minutes: SPECBENCH_LONG_TESTS=1 runs it")


@pytest.mark.slow
@LONG
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_combination_runs(path: Path, tmp_path: Path) -> None:
    for number, line in enumerate(command_lines(load(path))):
        runs = tmp_path / str(number)
        small = ["data.limit=1", "data.source=standin", "decoding.max_new_tokens=8", "measure.repeats=1", "measure.power=off"]
        command = [*line, *BUILTIN, *small, "measure.warmup=1", "engine.threads=1", f"runs_dir={runs}"]
        environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_SWEEP_ID": "test", "WANDB_RUN_ID": f"run{number}"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1])["status"] == "success"
        (run,) = offline_runs(runs)
        assert run.id == f"run{number}"
        assert "speedup" in run.summary
