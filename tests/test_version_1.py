"""A run folder of format version 1 is read, compared and continued: golden/run_v1 was written by the code before the house."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from specbench.config.schema import as_dict, from_dict
from specbench.measure.metrics import RoundTable, check_identities, seconds
from specbench.measure.records import store
from specbench.measure.records.events import FORMAT_VERSION, LATER_FIELDS
from specbench.measure.summary import rebuild
from specbench.method import create_method

FOLDER = Path(__file__).parent / "golden" / "run_v1"


def test_the_records_are_whole() -> None:
    assert store.read_run(FOLDER)["format_version"] == 1 < FORMAT_VERSION
    samples, rounds = store.read_samples(FOLDER), store.read_rounds(FOLDER)
    table = RoundTable.of(rounds)
    check_identities(samples, table)
    assert len(table) > 10 and all((table.columns[name] == value).all() for name, value in LATER_FIELDS.items())
    assert seconds(table, samples)["learn"] == 0.0


def test_the_summary_is_what_was_written_then() -> None:
    then, now = store.read_summary(FOLDER), rebuild(FOLDER)
    for key in ("decode_tokens", "num_rounds", "emitted_per_round", "acceptance_rate", "rollbacks", "lossless"):
        assert now[key] == then[key], key
    assert now["speedup"]["ratio_of_totals"] == pytest.approx(then["speedup"]["ratio_of_totals"])
    assert now["seconds"] == pytest.approx(then["seconds"] | {"learn": 0.0})


def test_the_analysis_compares_it(tmp_path: Path) -> None:
    from specbench.analysis import compare, load

    shutil.copytree(FOLDER, tmp_path / "run")
    table = load([tmp_path]).table(0, "method", None)
    assert len(table) and (table.target_share == 1.0).all() and (table.draft_version == 0).all()
    assert "speculative" in compare([tmp_path])


def test_its_configuration_still_makes_its_methods() -> None:
    run = store.read_run(FOLDER)
    config = from_dict(run["config"])
    assert store.config_hash(as_dict(config)) == run["config_hash"], "the same run, not another one"
    assert create_method(config.method).draft_length == 4
    assert type(create_method(config.baseline, key="baseline")).__name__ == "Autoregressive"
