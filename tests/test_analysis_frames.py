"""Stored runs as frames: what is read is what was written, and what cannot be used is said."""

from __future__ import annotations

import json
import os
import random
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from analysis_runs import write_run

from specbench.analysis import compare
from specbench.analysis.read import reading
from specbench.analysis.read.columns import ROUNDS_COLUMNS, RUNS_COLUMNS, SAMPLES_COLUMNS
from specbench.analysis.read.frames import find, load
from specbench.measure import metrics
from specbench.measure.metrics import RoundTable
from specbench.measure.records import store
from specbench.measure.records.events import ROUND_FIELDS


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder, "speculative", when=1)
    write_run(folder, "amusd", free=True, gamma=3, when=2, seed=2)
    return folder


def test_columns_are_the_documented_ones(root: Path) -> None:
    frames = load([root])
    assert list(frames.runs.columns) == list(RUNS_COLUMNS)
    assert list(frames.samples.columns) == list(SAMPLES_COLUMNS)
    assert list(frames.rounds.columns) == list(ROUNDS_COLUMNS)


def test_rounds_are_the_stored_ones(root: Path) -> None:
    frames = load([root])
    for run, folder in frames.runs["folder"].items():
        whole = RoundTable.of(store.read_rounds(folder))
        for arm in ("method", "baseline"):
            ours, theirs = frames.table(run, arm), whole.arm(arm)
            assert set(ours.keys) == set(theirs.keys)
            for name in ("num_accepted", "num_emitted", "draft_depth", "num_discarded"):
                mine = dict(zip(ours.keys, ours.sums(name), strict=True))
                assert mine == dict(zip(theirs.keys, theirs.sums(name), strict=True))
            assert float(ours.verify_seconds.sum()) == pytest.approx(float(theirs.verify_seconds.sum()), rel=1e-6)
            assert metrics.emitted_per_round(ours) == metrics.emitted_per_round(theirs)
            assert metrics.conditional_acceptance_by_position(ours) == metrics.conditional_acceptance_by_position(theirs)


def test_table_of_some_prompts_holds_their_rounds_alone(root: Path) -> None:
    frames = load([root])
    table = frames.table(0, "method", ["humaneval/3"])
    assert {key[0] for key in table.keys} == {"humaneval/3"}
    assert len(table) == sum(len(frames.table(0, "method", ["humaneval/3"]).t_start[table.sample == i]) for i in (0, 1)) > 0
    assert len(table) < len(frames.table(0, "method"))


def test_fast_and_slow_reading_agree(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = load([root]).rounds
    calls = []

    def refuse(path: Path) -> None:
        calls.append(path)
        raise ValueError("not today")

    monkeypatch.setattr(reading, "_by_arrow", refuse)
    slow = load([root]).rounds
    assert len(calls) == 2
    assert fast.equals(slow[fast.columns])


def test_fast_reading_takes_ordinary_files(root: Path) -> None:
    """Otherwise the comparison above compares the slow path with itself."""
    keys, lengths, columns = reading._by_arrow(find([root])[0] / store.ROUNDS_FILE)
    assert len(keys) == len(lengths) == 32
    assert all(len(values) == lengths.sum() for values in columns.values())


def copied(root: Path, target: Path, name: str = "speculative") -> Path:
    source = next(folder for folder in find([root]) if name in folder.name)
    folder = target / source.name
    folder.mkdir(parents=True)
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_a_run_without_a_single_round_stands_beside_others(root: Path, tmp_path: Path) -> None:
    """Every output ended with the prefill's token: the columns keep their types, the frames the other runs' rounds."""
    write_run(tmp_path, "speculative", when=1)
    folder = write_run(tmp_path, "amusd", free=True, gamma=3, when=2, seed=2)
    samples = [json.loads(line) for line in (folder / store.SAMPLES_FILE).read_text().splitlines()]
    for row in samples:
        row |= {"num_emitted": 0, "num_rounds": 0, "output_ids": row["output_ids"][:1], "decode_seconds": 0.0}
    rounds = [json.loads(line) for line in (folder / store.ROUNDS_FILE).read_text().splitlines()]
    for row in rounds:
        row |= {name: [] for name in ROUND_FIELDS}
    for name, rows in ((store.SAMPLES_FILE, samples), (store.ROUNDS_FILE, rounds)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    frames = load([tmp_path])
    assert not frames.left_out and len(frames.rounds_of(1)) == 0
    assert frames.rounds["phase"].cat.categories.tolist() == [""] and len(frames.rounds) == len(frames.rounds_of(0)) > 0


def test_torn_last_line_is_noted(root: Path, tmp_path: Path) -> None:
    folder = copied(root, tmp_path)
    with (folder / store.ROUNDS_FILE).open("a") as file:
        file.write('{"sample_id": "humaneval/9", "tu')
    frames = load([tmp_path])
    assert len(frames.runs) == 1
    assert any("torn last line" in note for note in frames.notes)


def test_damage_in_the_middle_leaves_the_run_out_by_line(root: Path, tmp_path: Path) -> None:
    folder = copied(root, tmp_path)
    lines = (folder / store.ROUNDS_FILE).read_text().splitlines(keepends=True)
    lines[4] = lines[4][:50] + "\n"
    (folder / store.ROUNDS_FILE).write_text("".join(lines))
    frames = load([tmp_path])
    assert frames.runs.empty
    assert f"{store.ROUNDS_FILE}:5" in frames.left_out[0].why


def test_records_that_contradict_themselves_leave_the_run_out(root: Path, tmp_path: Path) -> None:
    folder = copied(root, tmp_path)
    lines = (folder / store.ROUNDS_FILE).read_text().splitlines()
    row = json.loads(lines[0])
    row["num_emitted"][0] += 9
    (folder / store.ROUNDS_FILE).write_text("\n".join([json.dumps(row), *lines[1:]]) + "\n")
    frames = load([tmp_path])
    assert frames.runs.empty
    assert "num_emitted" in frames.left_out[0].why


def test_summary_that_disagrees_is_rebuilt(root: Path, tmp_path: Path) -> None:
    folder = copied(root, tmp_path)
    true = store.read_summary(folder)
    (folder / store.SUMMARY_FILE).write_text(json.dumps({**true, "emitted_per_round": 99.0}))
    frames = load([tmp_path])
    assert frames.runs.loc[0, "emitted_per_round"] == pytest.approx(true["emitted_per_round"])
    assert any("disagreed" in note for note in frames.notes)
    assert not load([root]).notes  # an honest one is taken as it is


def test_missing_summary_is_rebuilt(root: Path, tmp_path: Path) -> None:
    folder = copied(root, tmp_path)
    true = store.read_summary(folder)
    (folder / store.SUMMARY_FILE).unlink()
    frames = load([tmp_path])
    assert frames.runs.loc[0, "speedup"] == pytest.approx(true["speedup"]["ratio_of_totals"])
    assert any("missing" in note for note in frames.notes)


def test_unfinished_runs_need_asking_for(tmp_path: Path) -> None:
    write_run(tmp_path, status="interrupted")
    refused = load([tmp_path])
    assert refused.runs.empty
    assert "interrupted" in refused.left_out[0].why
    assert len(load([tmp_path], unfinished=True).runs) == 1


def test_folder_without_runs_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no run folder"):
        load([tmp_path])


def test_standin_data_never_go_under_the_real_name(tmp_path: Path) -> None:
    write_run(tmp_path, source="standin", when=1)
    changed = {"data": {"name": "humaneval", "source": "standin", "content_sha256": "x", "sample_ids": []}}
    write_run(tmp_path, source="standin", when=2, run_changes=changed)  # a record that forgot the ending
    write_run(tmp_path, source="path", when=3)
    assert load([tmp_path]).runs["data"].tolist() == ["humaneval-standin", "humaneval-standin", "humaneval"]


def test_missing_numbers_are_nan_and_never_zero(root: Path) -> None:
    runs = load([root]).runs
    assert runs["joules_per_token"].isna().all()
    assert np.isnan(runs.loc[0, "concurrent_draft"])
    assert runs.loc[1, "concurrent_draft"] > 0


# ---------------------------------------------------------------------------------------------------- a stranger's folder
WRONG: list[Any] = [
    *(None, True, -1, 2**70, 1.5, 1e300, "x", "", "\ud800", "<b>\u202e"),
    *([], {}, [1], [[1]], {"a": 1}, [None], "nan", ["x", "y"]),
]


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value inside, of lists the first three."""
    if at:
        yield at
    inside = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for key, item in inside:
        yield from places(item, (*at, key))


def spoil(folder: Path, draw: random.Random) -> str:
    """One value of one file is another, or gone; returns what, in words."""
    file = folder / draw.choice(["run.json", "samples.jsonl", "rounds.jsonl", "summary.json", "../sweep_1.json"])
    lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
    number = draw.randrange(len(lines))
    value = inner = json.loads(lines[number])
    *way, last = draw.choice(list(places(value)))
    for key in way:
        inner = inner[key]
    wrong = draw.choice([*WRONG, ...])
    if wrong is ...:
        del inner[last]
    else:
        inner[last] = wrong
    lines[number] = json.dumps(value)
    file.write_text("\n".join(lines) + "\n")
    return f"{file.name}, line {number + 1}: {[*way, last]} = {wrong!r}"


@pytest.mark.parametrize("seeds", [range(6), pytest.param(range(6, 200), marks=pytest.mark.deep)], ids=len)
def test_one_spoilt_folder_costs_no_other_its_place(seeds: range, tmp_path: Path) -> None:
    write_run(tmp_path / "made", "speculative", when=1)
    other = write_run(tmp_path / "made", "amusd", free=True, when=2)
    (other.parent / "sweep_1.json").write_text(
        json.dumps({"left_out": [{"what": "method=eagle", "why": "none", "num_jobs": 2}]})
    )
    for seed in seeds:
        draw, root = random.Random(seed), tmp_path / str(seed)
        shutil.copytree(tmp_path / "made", root)
        spoilt, good = draw.sample(find([root]), 2)
        what = spoil(spoilt, draw)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                frames = load([root])
                assert str(good) in list(frames.runs["folder"])
                compare([root])
            except Exception as error:
                raise AssertionError(f"seed {seed}: {what}") from error
        shutil.rmtree(root)


@pytest.mark.parametrize("file", ["run.json", "samples.jsonl", "rounds.jsonl", "summary.json"])
def test_a_pipe_in_a_folder_is_not_waited_for(file: str, root: Path, tmp_path: Path) -> None:
    for folder in find([root])[:2]:
        shutil.copytree(folder, tmp_path / folder.name)
    bad = sorted(tmp_path.iterdir())[0]
    (bad / file).unlink()
    os.mkfifo(bad / file)
    frames = load([tmp_path])
    assert str(bad) not in list(frames.runs["folder"]) or file == "summary.json"
    assert len(frames.runs) + len(frames.left_out) == (1 if file == "run.json" else 2)


def test_a_wrong_shape_that_was_let_through_would_end_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin."""
    write_run(tmp_path, "speculative", when=1)
    spoilt = write_run(tmp_path, "amusd", free=True, when=2)
    run = json.loads((spoilt / "run.json").read_text())
    run["pair"]["name"] = ["x"]
    (spoilt / "run.json").write_text(json.dumps(run))
    assert "speculative" in compare([tmp_path]) and load([tmp_path]).left_out[0].why == "run.json: pair.name is no text"
    monkeypatch.setattr(reading, "misfit", lambda *_: None)
    with pytest.raises(TypeError, match="unhashable"):
        compare([tmp_path])
