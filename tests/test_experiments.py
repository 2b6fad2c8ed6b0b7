"""Experiments: which jobs an experiment has, and that it ends in its own table and figures, at once and again later."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from analysis_runs import write_run
from hydra.core.override_parser.overrides_parser import OverridesParser
from jinja2 import UndefinedError
from sweeping import Command

from specbench.analysis.__main__ import main
from specbench.analysis.read.frames import Frames, load
from specbench.analysis.reports import experiments, writing
from specbench.analysis.reports.study import Chapter, Study
from specbench.analysis.reports.words import Words
from specbench.analysis.show.cells import Cell, Column, Row
from specbench.analysis.show.table import Table
from specbench.analysis.show.text import table_text
from specbench.front.launchers import IsolatedLauncher, SerialLauncher, combinations
from specbench.measure.records import provenance


def jobs_of(params: list[str], jobs: list[list[str]], *arguments: str) -> tuple[list[str], list[str]]:
    batch, axes = combinations(OverridesParser.create().parse_overrides, params, jobs, arguments)
    return [" ".join(options) for options in batch], axes


# ------------------------------------------------------------------------------------------------ which jobs
def test_jobs_are_combined_with_params_and_the_command_line() -> None:
    made, axes = jobs_of(["data=a,b"], [["method=x"], ["method=y", "method.k=1,2"]], "seed=0")
    assert made == [
        "data=a method=x seed=0", "data=b method=x seed=0",
        "data=a method=y method.k=1 seed=0", "data=a method=y method.k=2 seed=0",
        "data=b method=y method.k=1 seed=0", "data=b method=y method.k=2 seed=0",
    ]  # fmt: skip
    assert axes == ["data", "method.k"]


def test_a_job_of_one_value_goes_with_that_value() -> None:
    """`data=a` on the command line: the job that is another one on data c, with power, is not planned beside it."""
    jobs = [["method=x"], ["data=c", "method=x", "power=auto"], ["data=a", "method=floor"]]
    made, _ = jobs_of(["data=a,b"], jobs, "data=a")
    assert sorted(" ".join(sorted(line.split())) for line in made) == ["data=a method=floor", "data=a method=x"]
    assert len(jobs_of(["data=a,b"], jobs)[0]) == 4 and len(jobs_of(["data=a,b"], jobs, "data=c,a")[0]) == 5, "not on a"
    cold = [[], ["method=x", "method.scope=sample"]]
    assert jobs_of(["method=x,y"], cold, "method=y")[0] == ["method=y"]
    assert jobs_of(["method=x,y"], cold, "method=y,x")[0] == ["method=y", "method=x", "method=x method.scope=sample"]
    made, _ = jobs_of(["data=a,b"], jobs, "data=d")
    assert len(made) == 2, "a job that stands for no other takes the value that was typed"


def test_without_jobs_it_is_the_product_of_params() -> None:
    assert jobs_of(["method=x,y"], [], "data=a,b")[0] == [
        "method=x data=a", "method=x data=b", "method=y data=a", "method=y data=b",
    ]  # fmt: skip


def test_an_option_said_twice_counts_where_it_is_nearest_to_the_user() -> None:
    assert jobs_of(["data=a,b", "n=1"], [["data=c", "m=2"]])[0] == ["n=1 data=c m=2"]
    assert jobs_of(["data=a,b"], [["m=2"], ["m=3"]], "data=z")[0] == ["m=2 data=z", "m=3 data=z"]
    assert jobs_of(["method@baseline=a"], [["method=x"]], "method@baseline=b")[0] == ["method=x method@baseline=b"]


def test_an_option_of_another_group_with_the_same_name_stays() -> None:
    assert jobs_of(["method=x"], [], "method@baseline=y")[0] == ["method=x method@baseline=y"]


# ------------------------------------------------------------------------------------------------ its own report
def folders(frames: Frames) -> list[Chapter[str]]:
    return [Chapter(frames, [Path(folder).name for folder in frames.runs["folder"]])]


def table_of(chapter: Chapter[str]) -> Table:
    return chapter.table("own", "Its own table", [Column("folder", "folder", text=True, of=str)], "A caption.")


OWN: Study[str] = Study(title="A title of its own", heading="Folders", nothing="no run", chapters=folders, table=table_of)


def fake(study: Study[str] = OWN) -> types.ModuleType:
    module = types.ModuleType("specbench.analysis.reports.experiments.smoke")
    module.STUDY = study  # type: ignore[attr-defined]
    return module


@pytest.fixture
def with_own_report(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "specbench.analysis.reports.experiments.smoke", fake())
    monkeypatch.setattr(experiments, "known", lambda: ["smoke"])
    yield


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(provenance, "git_facts", lambda *_: {"commit": None, "dirty": None, "diff_sha256": None})
    monkeypatch.setattr(IsolatedLauncher, "one", SerialLauncher.one)
    return Command(monkeypatch, capsys, tmp_path / "runs")


def test_an_experiment_ends_in_its_own_report_by_one_command(command: Command, with_own_report: None) -> None:
    status, document, err = command("experiment=smoke", "data=humaneval")
    assert status == 0 and document is not None
    page = command.runs / "sweeps" / "smoke" / "report" / "report.html"
    assert document["report"] == str(page) and "A title of its own" in page.read_text()
    assert "Its own table" in err and all(Path(job["folder"]).name in err for job in document["jobs"])
    assert err.splitlines()[-1] == f"specbench: report: {page}"
    assert (page.parent / "tables" / "own.tex").is_file()


def test_an_experiment_whose_report_fails_loses_nothing(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(chapter: Chapter[str]) -> Table:
        raise KeyError("column")

    module = fake(replace(OWN, table=broken))
    monkeypatch.setitem(sys.modules, "specbench.analysis.reports.experiments.smoke", module)
    monkeypatch.setattr(experiments, "known", lambda: ["smoke"])
    status, document, err = command("experiment=smoke", "data=humaneval", "method=speculative")
    assert status == 0 and document is not None and document["report"] is None
    assert "no report by the analysis: KeyError" in err
    assert "speculative" in err, "and the comparison is printed"


def test_without_a_file_of_its_own_the_standard_report_is_written(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "GROUP_FIGURES", ())  # the report's tables tell it from an experiment's own
    monkeypatch.setattr(writing, "CELL_FIGURES", ())
    assert not (Path(experiments.__file__).parent / "smoke.py").exists()
    _, document, _ = command("experiment=smoke", "data=humaneval", "method=speculative")
    assert document is not None
    assert "Conditions 1" in Path(document["report"]).read_text()


def test_stored_runs_make_it_again(tmp_path: Path, with_own_report: None, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "runs")
    write_run(tmp_path / "runs", "pearl", status="failed", when=1)
    assert main([str(tmp_path / "runs"), "--experiment", "smoke"]) == 0
    said = capsys.readouterr().out
    assert folder.name in said and said.splitlines()[-1] == str(tmp_path / "runs" / "report" / "report.html")
    text = (tmp_path / "runs" / "report" / "report.md").read_text()
    assert "Its own table" in text and "not finished" in text and "Provenance" in text
    assert main([str(tmp_path / "runs"), "--experiment", "smoke", "--out", str(tmp_path / "elsewhere")]) == 0
    assert (tmp_path / "elsewhere" / "report.html").is_file()


def test_code_that_changed_between_the_runs_is_said(tmp_path: Path, with_own_report: None) -> None:
    write_run(tmp_path / "one")
    experiments.report("smoke", [tmp_path / "one"], tmp_path / "out")
    assert "changed between the runs" not in (tmp_path / "out" / "report.md").read_text()
    # Another baseline is what an experiment varies, no change of state.
    write_run(tmp_path / "one", "amusd", baseline="speculative", baseline_gamma=4, when=1)
    _, told = experiments.report("smoke", [tmp_path / "one"], tmp_path / "out")
    assert "changed between the runs" not in told
    write_run(tmp_path / "one", "amusd", conditions="c1", when=2)
    _, told = experiments.report("smoke", [tmp_path / "one"], tmp_path / "out")
    assert "changed between the runs (2 states" in " ".join(told.split()), "on the terminal too"
    assert "changed between the runs (2 states" in (tmp_path / "out" / "report.md").read_text()


def test_wrong_arguments_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path)
    assert main([str(tmp_path), "--experiment", "amusd_papre"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "amusd_papre" in said
    assert main([str(tmp_path), "--experiment", "smoke", "--reference"]) == 2
    assert main([str(tmp_path), str(tmp_path), "--experiment", "smoke"]) == 2


# ------------------------------------------------------------------------------------------------ text
def test_a_table_fits_the_terminal_and_names_what_it_left_out() -> None:
    columns = [Column(f"c{i}", f"column {i}", "group") for i in range(20)]
    cells = {column.key: Cell.of(1.0 + i, 0.5, 2.0) for i, column in enumerate(columns)}
    shown = table_text(Table("wide", "A wide one", columns, [Row(cells), Row(cells, "lossy")], "Caption.", ["a note"]))
    assert max(map(len, shown.splitlines())) <= 120
    assert "1.00 [0.50, 2.00]" in shown and "lossy:" in shown and "a note" in shown
    assert "tables/wide.csv" in shown and "column 19" in shown


def test_text_is_plain_whatever_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """No colour, no markup, no emoji: what a cell says is what is printed."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    column = Column("c", "[red]a[/red] :smile:", text=True)
    shown = table_text(Table("t", "T", [column], [Row({"c": Cell("[bold]x 12.5")})], "Caption."))
    assert shown.splitlines() == ["T", "[red]a[/red] :smile:", "-" * 20, "[bold]x 12.5"]


def test_every_experiment_is_two_files() -> None:
    from specbench.config.paths import CONF_DIR

    runnable = {path.stem for path in (Path(CONF_DIR) / "experiment").glob("*.yaml")}
    assert set(experiments.known()) <= runnable
    for name in experiments.known():
        assert isinstance(experiments.find(name), Study) and experiments.find(name).title


def test_the_record_of_a_sweep_of_lists_is_json(command: Command) -> None:
    _, document, err = command("-m", "hydra.sweeper.jobs=[['method=speculative'],['method=amusd','method.stale=wait']]")
    assert document is not None, err
    assert [(job["method"], job["status"]) for job in document["jobs"]] == [("speculative", "success"), ("amusd", "success")]
    assert json.loads(next(command.runs.rglob("sweep_*.json")).read_text())["num_jobs"] == 2


# ------------------------------------------------------------------------------------------------ its words
def words_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> Words:
    (tmp_path / "spoken").mkdir()
    (tmp_path / "spoken" / "__init__.py").touch()
    (tmp_path / "spoken" / "own.yaml").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "spoken", raising=False)
    return Words("spoken.own")


def test_what_an_experiment_says_stands_in_its_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = words_of(
        tmp_path,
        monkeypatch,
        "title: Own\n"
        "shared: {unit: seconds}\n"
        "tables:\n"
        "  own:\n"
        "    title: T\n"
        "    caption: In {{ unit }}, {{ n }} rows.\n"
        "    columns: [{key: a, label: A, of: b.c}, {key: d, label: D}]\n"
        "sentences: {found: '{{ n }} found'}\n",
    )
    chapter: Chapter[Any] = Chapter(load([]), [{"b": {"c": 2.0}, "d": None}, {"b": None, "d": None}])
    table = words.table(chapter, "own", n=2)
    assert words.study == {"title": "Own"} and table.caption == "In seconds, 2 rows." and words.say("found", n=3) == "3 found"
    assert table.to_csv() == 'a\n2.0\n""\n', "nothing is behind a missing part, and a column without an entry is left out"
    assert len(words.table(chapter, "own", n=2, keep_empty=True).columns) == 2
    with pytest.raises(UndefinedError, match="'n'"):
        words.say("found")
    with pytest.raises(KeyError):
        words.table(chapter, "other")


def test_words_that_nothing_reads_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match="nothing reads figure"):
        words_of(tmp_path, monkeypatch, "tables: {}\nfigure: {}\n")
