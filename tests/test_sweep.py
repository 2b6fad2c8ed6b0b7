"""Sweeps: which jobs there are, what becomes of each, and what is left when it is started again."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path

import pytest
from run_folders import BUILTIN
from sweeping import Command, execute

from specbench.analysis.read.frames import load
from specbench.front.launchers import config_arguments, without_idle_options
from specbench.front.sweep import quoted
from specbench.measure.records import provenance
from specbench.measure.records.store import find_run_folders, read_run

PACKAGES = functools.cache(provenance.package_facts)  # they stay as they are while the tests run
TWO = ("-m", "method=speculative,amusd")
SETS = ("-m", "method=speculative", "data=humaneval,mt_bench")
GRID = ("-m", "method=speculative,amusd", "data=humaneval,mt_bench")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    monkeypatch.chdir(tmp_path)
    # Not this checkout's commit and changes: somebody may be at work in it while the tests run.
    nothing = {"commit": None, "dirty": None, "diff_sha256": None}
    monkeypatch.setattr(provenance, "git_facts", lambda *_: nothing)
    monkeypatch.setattr(provenance, "package_facts", PACKAGES)
    return Command(monkeypatch, capsys, tmp_path / "runs")


# ------------------------------------------------------------------------------------------------ jobs
def test_each_combination_is_a_run_of_its_own(command: Command) -> None:
    status, document, err = command(*GRID)
    assert status == 0
    assert document is not None
    assert (document["status"], document["num_requested"], document["num_jobs"], document["num_failed"]) == ("success", 4, 4, 0)
    ran = [(config.method_name, config.data.name) for config in command.run.configs]
    assert ran == [(m, d) for m in ("speculative", "amusd") for d in ("humaneval", "mt_bench")]
    folders = [Path(job["folder"]) for job in document["jobs"]]
    assert sorted(folders) == find_run_folders(command.runs)
    assert all(re.fullmatch(r"(speculative|amusd)_(humaneval|mt_bench)_[0-9a-f]{8}", folder.name) for folder in folders)
    assert all(job["speedup"] > 1 and len(job["ci95"]) == 2 for job in document["jobs"])
    record = json.loads(next(Path(document["sweep_folder"]).glob("sweep_*.json")).read_text())
    assert record["jobs"] == document["jobs"]
    assert [line for line in err.splitlines() if line.startswith("specbench: [4/4]")], "a line over all jobs"
    assert "specbench: [2/4] method=speculative data=mt_bench\n" in err, "named by what varies"


def test_jobs_of_equal_configuration_run_once(command: Command) -> None:
    """method.draft_length does not apply to autoregressive decoding: both its jobs are the same one."""
    status, document, err = command("-m", "method=autoregressive,speculative", "method.draft_length=2,4")
    assert status == 0
    assert document is not None
    assert (document["num_requested"], document["num_jobs"]) == (4, 3)
    ran = [(config.method_name, config.method["draft_length"]) for config in command.run.configs]
    assert ran == [("autoregressive", None), ("speculative", 2), ("speculative", 4)]
    assert "1 combination like another, run once" in err


def test_outside_a_sweep_an_option_that_does_not_apply_is_no_accident(command: Command) -> None:
    command("method=autoregressive", "method.draft_length=2")
    assert command.run.configs[0].method["draft_length"] == 2, "and the method's constructor refuses it"


def test_the_agent_of_a_wandb_sweep_knows_no_option_that_does_not_apply(command: Command) -> None:
    command.monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    _, _, err = command("method=autoregressive", "method.draft_length=2")
    assert command.run.configs[0].method["draft_length"] is None
    assert err == "specbench: method.draft_length is left out: the sweep's method has none\n"
    command("method=speculative", "method.draft_length=2")
    assert command.run.configs[1].method["draft_length"] == 2


def test_idle_options_are_dropped_for_methods_without_them() -> None:
    nodes = {"method=a": {"draft_length": None}, "method=b": {"draft_length": 4}, "method=c": {}}

    def kept(*overrides: str) -> list[str]:
        return without_idle_options(overrides, lambda some: nodes[some[0]])

    assert kept("method=a", "method.draft_length=2", "x=1") == ["method=a", "x=1"]
    assert kept("method=b", "method.draft_length=2") == ["method=b", "method.draft_length=2"]
    assert kept("method=c", "++method.draft_length=2") == ["method=c"]
    assert kept("method=a", "x=1") == ["method=a", "x=1"]


def test_what_the_pair_cannot_do_is_left_out_with_the_reason(command: Command) -> None:
    """In the record, on the screen and in what the analysis reads beside the runs, whatever data set it would have been."""
    jobs = ("-m", "method=suffix,eagle,speculative,rest,layerskip", "data=humaneval,mt_bench", "pair.draft=null")
    pair = ("pair.target=builtin:target_half", "allow_mixed=true")
    status, document, err = command(*jobs, *pair, "sweep.skip_unfit=true", "sweep.name=some")
    assert status == 0 and document is not None
    assert (document["status"], document["num_jobs"], document["num_failed"]) == ("success", 10, 0)
    assert [config.method_name for config in command.run.configs] == ["suffix"] * 2 + ["layerskip"] * 2
    assert [job["status"] for job in document["jobs"]].count("left out") == 6
    said = {item["what"]: (item["num_jobs"], item["why"].partition(":")[0]) for item in document["left_out"]}
    assert said == {
        "method=eagle": (2, "method.heads=null"),
        "method=speculative": (2, "pair.draft=null"),
        "method=rest": (2, "method.datastore=null"),
    }
    assert "[4/4]" in err and err.count("left out: method=rest (2 jobs): method.datastore=null") == 2, "before, and after"
    frames = load([document["sweep_folder"]])
    assert ("method=eagle (2 jobs)", "method.heads=null") in [(o.folder, o.why.partition(":")[0]) for o in frames.left_out]
    command.run.fails = lambda config: ValueError("early") if config.method_name == "suffix" else None
    assert command(*jobs, *pair, "sweep.skip_unfit=true", "sweep.name=another")[0] == 1, "what was tried and failed has failed"


def test_nothing_is_left_out_unasked_and_what_is_named_wrongly_is_an_error(command: Command) -> None:
    command.run.fails = lambda config: ValueError("early")
    rest = ("-m", *BUILTIN, "method=rest,suffix", "sweep.name=some")
    status, document, _ = command(*rest)
    assert status == 1 and document is not None and (document["num_failed"], document["left_out"]) == (2, [])
    command.monkeypatch.setenv("SPECBENCH_DATASTORE", "no_such_folder")
    _, document, _ = command(*rest, "sweep.skip_unfit=true")
    assert document is not None and (document["num_failed"], document["left_out"]) == (2, []), "the run itself says it"
    command.monkeypatch.delenv("SPECBENCH_DATASTORE")
    status, document, err = command("-m", *BUILTIN, "method=rest", "data=humaneval,mt_bench", "sweep.skip_unfit=true")
    assert status == 2 and document is None and "leaves nothing to run: method.datastore=null" in err


def test_a_wrong_option_in_any_job_stops_the_sweep_before_the_first(command: Command) -> None:
    status, document, err = command("-m", "method=speculative,amusd", "decoding.max_new_tokens=8,0")
    assert (status, document) == (2, None)
    assert err == "specbench: decoding.max_new_tokens=0: possible: an integer of at least 1\n"
    assert command.run.configs == []
    assert not list(command.runs.rglob("*.json"))


@pytest.mark.parametrize("key", ["resume", "run_folder"])
def test_a_sweep_has_its_own_folders(command: Command, key: str) -> None:
    status, _, err = command(*TWO, f"{key}=somewhere")
    assert status == 2
    assert f"{key}='somewhere': a sweep has its own folders" in err


def test_values_with_signs_reach_the_job(command: Command) -> None:
    odd = command.runs.parent / "it's, a [folder]"
    command.runs = Path(quoted(str(odd)))
    assert command(*TWO)[0] == 0
    assert len(find_run_folders(odd)) == 2


# ------------------------------------------------------------------------------------------------ failures
def test_a_failed_job_stops_nothing_and_is_recorded(command: Command) -> None:
    command.run.fails = lambda config: RuntimeError("lost") if config.method_name == "speculative" else None
    status, document, err = command(*TWO)
    assert status == 1
    assert document is not None
    assert document["status"] == "failed"
    bad, good = document["jobs"]
    assert (bad["status"], good["status"]) == ("failed", "success")
    assert "RuntimeError: lost" in bad["error"]
    assert good["error"] is None
    assert read_run(bad["folder"])["status"] == "failed"
    assert "[1/2] failed: RuntimeError: lost" in err
    assert err.splitlines()[-1].startswith("specbench: failed: method=speculative: RuntimeError: lost")


def test_a_job_that_fails_before_it_has_a_folder_is_recorded_too(command: Command) -> None:
    command.run.fails = lambda config: ValueError("too early") if config.method_name == "speculative" else None
    status, document, _ = command(*TWO)
    assert status == 1
    assert document is not None
    assert [job["error"] for job in document["jobs"]] == ["too early", None]


def test_tracebacks_on_request(command: Command) -> None:
    command.monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    command.run.fails = lambda config: RuntimeError("lost")
    status, _, err = command(*TWO)
    assert status == 1
    assert err.count("Traceback (most recent call last)") == 2


def test_ctrl_c_ends_the_sweep(command: Command) -> None:
    command.run.fails = lambda config: KeyboardInterrupt()
    status, document, err = command(*TWO)
    assert (status, document) == (130, None)
    assert err.splitlines()[-1] == "specbench: interrupted"
    assert len(command.run.configs) == 1
    (record,) = command.runs.rglob("sweep_*.json")
    assert json.loads(record.read_text())["status"] == "interrupted"


# ------------------------------------------------------------------------------------------------ again
def test_started_again_it_does_what_is_left(command: Command) -> None:
    command.run.fails = lambda config: RuntimeError("lost") if config.data.name == "mt_bench" else None
    assert command(*SETS)[0] == 1
    command.run.fails = lambda config: None
    command.run.configs.clear()
    status, document, err = command(*SETS)
    assert status == 0
    assert document is not None
    assert [config.data.name for config in command.run.configs] == ["mt_bench"]
    assert [job["finished_before"] for job in document["jobs"]] == [True, False]
    assert "1 finished before" in err
    for job in document["jobs"]:
        run = read_run(job["folder"])
        assert run["status"] == "success"
        assert len(run.get("sessions", [])) == (not job["finished_before"]), "unfinished ones go on where they stopped"
        assert run.get("error") is None
    command.run.configs.clear()
    status, document, _ = command(*SETS)
    assert (status, command.run.configs) == (0, [])
    assert document is not None
    assert document["num_finished_before"] == 2


def test_another_name_measures_again(command: Command) -> None:
    command(*TWO)
    command.run.configs.clear()
    status, document, _ = command(*TWO, "sweep.name=second")
    assert status == 0
    assert len(command.run.configs) == 2
    assert document is not None
    assert document["sweep_folder"] == str(command.runs / "sweeps" / "second")


def test_finished_jobs_of_other_conditions_are_not_passed_off_as_todays(command: Command) -> None:
    command(*TWO)
    command.run.configs.clear()
    command.monkeypatch.setattr(provenance, "git_facts", lambda *_: {"commit": "f" * 40, "diff_sha256": None})
    status, document, err = command(*TWO)
    assert (status, document) == (2, None)
    assert "git commit: none, now ffffffffffff..." in err
    assert "sweep.name=<new>" in err
    status, document, _ = command(*TWO, "allow_mixed=true")
    assert (status, command.run.configs) == (0, [])
    assert document is not None
    assert all(job["changed"] for job in document["jobs"])


# ------------------------------------------------------------------------------------------------ experiments
def test_an_experiment_is_a_sweep_with_a_name(command: Command) -> None:
    from specbench.front.launchers import IsolatedLauncher, SerialLauncher

    handed: list[list[Path]] = []

    def report(folders: list[Path], out: Path, title: str) -> Path:
        handed.append(folders)
        assert title == "smoke"
        return out / "report.html"

    command.monkeypatch.setattr("specbench.analysis.report", report)
    command.monkeypatch.setattr(IsolatedLauncher, "one", SerialLauncher.one)
    status, document, _ = command("experiment=smoke", "data.limit=1")
    assert status == 0
    assert document is not None
    assert document["sweep_folder"] == str(command.runs / "sweeps" / "smoke")
    assert document["num_jobs"] == 4
    assert handed == [[Path(job["folder"]) for job in document["jobs"]]]
    assert document["report"] == str(command.runs / "sweeps" / "smoke" / "report" / "report.html")
    assert {config.data.limit for config in command.run.configs} == {1}, "the command line wins"
    assert {config.decoding.max_new_tokens for config in command.run.configs} == {32}
    command.run.configs.clear()
    assert command("experiment=smoke", "data.limit=1")[0] == 0
    assert command.run.configs == []


def test_an_analysis_that_fails_loses_no_sweep(command: Command) -> None:
    def broken(*_: object, **__: object) -> str:
        raise KeyError("column")

    command.monkeypatch.setattr("specbench.analysis.compare", broken)
    status, document, err = command(*GRID)
    assert status == 0
    assert document is not None
    assert "no comparison by the analysis: KeyError" in err
    assert re.search(r"method=amusd data=mt_bench +humaneval|method=amusd data=mt_bench +mt_bench", err), "the plain table"


def test_the_analysis_compares_the_runs(command: Command) -> None:
    handed: list[list[Path]] = []

    def compare(folders: list[Path]) -> str:
        handed.append(folders)
        return "A TABLE"

    command.monkeypatch.setattr("specbench.analysis.compare", compare)
    _, document, err = command(*TWO)
    assert document is not None
    assert handed == [[Path(job["folder"]) for job in document["jobs"]]]
    assert "A TABLE" in err.splitlines()


# ------------------------------------------------------------------------------------------------ isolated
def test_isolated_jobs_come_in_an_order_of_their_own(command: Command) -> None:
    from specbench.front.launchers import IsolatedLauncher, SerialLauncher

    command.monkeypatch.setattr(IsolatedLauncher, "one", SerialLauncher.one)
    _, document, _ = command("-m", "decoding.seed=0,1,2,3", "launcher=isolated", "hydra.launcher.seed=5")
    assert document is not None
    assert [job["overrides"][0] for job in document["jobs"]] == [f"decoding.seed={i}" for i in range(4)]
    assert [config.decoding.seed for config in command.run.configs] == list(IsolatedLauncher(5).order(4)) != [0, 1, 2, 3]

    orders = [list(IsolatedLauncher(seed).order(8)) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert all(sorted(order) == list(range(8)) for order in orders)


def test_launchers_of_others_run_the_same_jobs(command: Command) -> None:
    """Hydra's own, as an example: it knows nothing of the sweep's record."""
    command.run.fails = lambda config: RuntimeError("lost") if config.data.name == "mt_bench" else None
    status, document, _ = command(*GRID, "hydra/launcher=basic")
    assert status == 1
    assert document is not None
    assert [job["status"] for job in document["jobs"]] == ["success", "failed"] * 2
    assert "RuntimeError: lost" in document["jobs"][1]["error"]


def test_a_child_finds_the_same_configurations() -> None:
    assert config_arguments(["-m", "--config-dir", "mine", "method=a,b"]) == ["--config-dir", "mine"]
    assert config_arguments(["-m", "method=a,b"]) == []


@pytest.mark.slow
def test_isolated_jobs_run_in_processes_of_their_own(tmp_path: Path) -> None:
    done = execute(tmp_path / "runs", "-m", "launcher=isolated", "method=speculative", "pair.draft=builtin:draft,/nowhere")
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    good, bad = document["jobs"]
    assert good["status"] == "success"
    assert bad["error"] == "pair.draft='/nowhere': no such folder"
    argv = read_run(good["folder"])["provenance"]["argv"]
    assert argv[0].endswith("isolated.py")
    assert "Traceback" not in done.stderr
