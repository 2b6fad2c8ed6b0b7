"""The published files, where SPECBENCH_DATA names a folder that holds them."""

from __future__ import annotations

import dataclasses
import gzip
import os
from collections import Counter
from pathlib import Path

import pytest
import yaml

from specbench import data
from specbench.config.options import ConfigError
from specbench.config.paths import CONF_DIR
from specbench.config.schema import DataConfig
from specbench.data.files import DATA_VARIABLE


def config_of(name: str) -> DataConfig:
    """The shipped configuration, with the file or a skip."""
    if not os.environ.get(DATA_VARIABLE):
        pytest.skip(f"{DATA_VARIABLE} names no folder with the published sets")
    config = DataConfig(**yaml.safe_load((CONF_DIR / "data" / f"{name}.yaml").read_text()))
    if not (Path(os.environ[DATA_VARIABLE]) / config.file).is_file():
        pytest.skip(f"{config.file} is not in the folder of {DATA_VARIABLE}")
    return config


@pytest.mark.parametrize(
    ("name", "num_samples", "turns"),
    [
        ("humaneval", 164, {1: 164}),
        ("mt_bench", 80, {2: 80}),
        ("specbench", 480, {2: 80, 1: 400}),
        ("refactorchat", 100, {4: 100}),
    ],
)
def test_published_file_loads_under_its_name(name: str, num_samples: int, turns: dict[int, int]) -> None:
    config = config_of(name)
    dataset = data.load(dataclasses.replace(config, source="path"))
    assert (dataset.name, dataset.source, dataset.sha256, dataset.warnings) == (name, "path", config.sha256, ())
    assert len(dataset.samples) == num_samples
    assert Counter(len(sample.turns) for sample in dataset.samples) == turns
    chosen = data.select(dataset, dataclasses.replace(config, limit=20))
    assert len(chosen) == 20


def test_specbench_begins_with_mt_bench() -> None:
    whole, part = data.load(config_of("specbench")).samples, data.load(config_of("mt_bench")).samples
    assert whole[:80] == part
    assert Counter(sample.category for sample in whole[80:]) == dict.fromkeys(
        ("translation", "summarization", "qa", "math_reasoning", "rag"), 80
    )


def test_thirteen_of_specbench_cover_its_thirteen_categories() -> None:
    config = config_of("specbench")
    drawn = data.select(data.load(config), dataclasses.replace(config, limit=13))
    assert len({sample.category for sample in drawn}) == 13


def test_unpacked_humaneval_is_the_same_set_and_an_edited_one_is_not(tmp_path: Path) -> None:
    config = config_of("humaneval")
    text = gzip.decompress((Path(os.environ[DATA_VARIABLE]) / config.file).read_bytes())
    (tmp_path / "HumanEval.jsonl").write_bytes(text)
    local = dataclasses.replace(config, path=str(tmp_path))
    assert data.load(local).name == "humaneval"
    (tmp_path / "HumanEval.jsonl").write_bytes(text.replace(b"Check if in given list", b"Check if in a given list"))
    with pytest.raises(ConfigError, match="content differs"):
        data.load(local)
