"""Trackers: what W&B holds of a run, and that no tracker can harm one."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_folders import composed, finished_run
from wandb_files import OfflineRun, offline_runs

from specbench.config.options import ConfigError
from specbench.config.schema import RunConfig
from specbench.front import cli
from specbench.measure.records.store import read_samples, read_summary
from specbench.track import mirror, tracker

FAKE_KEYS = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "HF_TOKEN": "hf_abcdefghijklmnopqrstuvwxyz",
    "GITHUB_TOKEN": "ghp_0123456789abcdefghijklmnop",
}


def go_offline(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """W&B as on a machine without network, with a home of its own, and keys in the environment that must reach no file."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(home))
    for name, key in FAKE_KEYS.items():
        monkeypatch.setenv(name, key)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    go_offline(monkeypatch, tmp_path / "home")


def compose(*overrides: str) -> RunConfig:
    return composed("method=speculative", *overrides)


def mirrored(folder: Path, config: RunConfig) -> str:
    """What the run's own process says about it."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        mirror.mirror_apart(folder, config)
    err = said.getvalue()
    assert err.count("\n") == 1, err
    return err


# ------------------------------------------------------------------------------------------------ W&B
@pytest.fixture(scope="module")
def on_wandb(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, OfflineRun, Path]:
    """A run's folder, what W&B holds of it, and the folder of everything that was written."""
    root = tmp_path_factory.mktemp("wandb")
    config = compose("track=wandb", "track.tags=[mine]", f"runs_dir={root / 'runs'}")
    folder = finished_run(root / "runs", config)
    (folder / "tables").mkdir()
    (folder / "tables" / "speed.csv").write_text("method,speedup\nspeculative,1.5\n")
    with pytest.MonkeyPatch.context() as monkeypatch:
        go_offline(monkeypatch, root / "home")
        said = mirrored(folder, config)
    assert said.startswith("specbench: mirrored by WandbTracker: offline: wandb sync")
    (run,) = offline_runs(root / "runs")
    return folder, run, root


def test_wandb_holds_the_whole_run(on_wandb: tuple[Path, OfflineRun, Path]) -> None:
    folder, run, _ = on_wandb
    assert run.project == "specbench"
    assert set(run.tags) == {"humaneval", "mine", "speculative"}
    assert run.exit_code == 0

    config = run.config
    assert config["decoding"]["max_new_tokens"] == 128
    assert config["method"]["draft_length"] == 4
    assert config["run"]["baseline"] == "autoregressive"

    samples = read_samples(folder)
    prompts = {(row["sample_id"], row["turn"], row["repeat"]): row for row in run.prompts}
    assert len(prompts) == len(run.prompts) == len(samples) // 2
    for record in samples:
        row = prompts[record.sample_id, record.turn, record.repeat]
        assert row[f"{record.arm}/decode_seconds"] == pytest.approx(record.decode_seconds)
        assert row[f"{record.arm}/num_emitted"] == record.num_emitted
        assert row[f"{record.arm}/order"] == record.order

    speedup = read_summary(folder)["speedup"]
    assert run.summary["speedup"] == pytest.approx(speedup["ratio_of_totals"])
    assert [run.summary["speedup_lo"], run.summary["speedup_hi"]] == pytest.approx(speedup["ci95"])
    assert run.summary["lossless"] == "not_compared"
    assert run.summary["status"] == "success"
    assert any(row.get("speedup") == pytest.approx(speedup["ratio_of_totals"]) for row in run.rows), "where sweeps look"
    assert {"table/prompts", "table/tables/speed"} <= {key.partition(".")[0] for key in run.summary}

    files = run.artifacts[f"run/run-{run.id}"]
    assert sorted(files) == ["rounds.jsonl", "run.json", "samples.jsonl", "summary.json", "tables/speed.csv"]


def test_no_key_reaches_a_file(on_wandb: tuple[Path, OfflineRun, Path]) -> None:
    _, _, root = on_wandb
    written = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    assert any(path.suffix == ".wandb" for path in written)
    for path in written:
        content = path.read_bytes()
        for name, key in FAKE_KEYS.items():
            assert key.encode() not in content, f"{name} in {path}"
    marker = root / "home" / "marker"
    marker.parent.mkdir(exist_ok=True)
    marker.write_text(FAKE_KEYS["HF_TOKEN"])  # the twin: this search finds one
    assert any(FAKE_KEYS["HF_TOKEN"].encode() in path.read_bytes() for path in root.rglob("*") if path.is_file())
    marker.unlink()


def test_a_finished_run_is_replayed_under_the_same_id(
    on_wandb: tuple[Path, OfflineRun, Path], offline: None, tmp_path: Path
) -> None:
    folder, first, _ = on_wandb
    shutil.copytree(folder, tmp_path / "runs" / folder.parent.name / folder.name)
    unfinished = finished_run(tmp_path / "runs", compose())
    run_json = unfinished / "run.json"
    run_json.write_text(run_json.read_text().replace('"status": "success"', '"status": "started"'))
    again = tmp_path / "again"
    command = [sys.executable, "-m", "specbench.track", str(tmp_path / "runs"), "track.project=later", f"track.dir={again}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"{unfinished}: left out, it has not ended" in done.stderr
    (second,) = offline_runs(again)
    assert (second.id, second.project) == (first.id, "later")
    assert second.prompts == first.prompts


def test_the_run_of_a_sweeps_agent_is_taken(offline: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "agents01")
    config = compose("track=wandb", f"runs_dir={tmp_path / 'runs'}")
    assert "mirrored" in mirrored(finished_run(tmp_path / "runs", config), config)
    (run,) = offline_runs(tmp_path / "runs")
    assert run.id == "agents01"


def test_jobs_of_a_sweep_are_one_group(tmp_path: Path) -> None:
    folder = finished_run(tmp_path / "runs")
    job = tmp_path / "runs" / "sweeps" / "study" / "speculative_humaneval_00000000"
    job.parent.mkdir(parents=True)
    folder.rename(job)
    assert mirror.tracked_run(job).group == "study"


def test_a_failed_run_is_mirrored_as_failed(offline: None, tmp_path: Path) -> None:
    config = compose("track=wandb", f"runs_dir={tmp_path / 'runs'}")
    folder = finished_run(tmp_path / "runs", config)
    (folder / "summary.json").unlink()
    run_json = folder / "run.json"
    run_json.write_text(run_json.read_text().replace('"status": "success"', '"status": "failed"'))
    mirrored(folder, config)
    (run,) = offline_runs(tmp_path / "runs")
    assert run.exit_code == 1
    assert run.summary["status"] == "failed"
    assert run.prompts


# ------------------------------------------------------------------------------------------------ what goes wrong
TRACKERS = """
import os, subprocess, sys, time
from specbench.track.tracker import Tracker

class Good(Tracker):
    def start(self, run): pass
    def finish(self, status): return f"kept, {status}"

class Bad(Good):
    def summary(self, values): raise ConnectionError("no route to host, token=abcdef123456")

class Dead(Good):
    def log(self, row): os._exit(7)

class Hung(Good):
    def log(self, row):
        helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        open(os.environ["HELPER_PID"], "w").write(str(helper.pid))
        time.sleep(600)
"""


@pytest.fixture
def trackers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunConfig]:
    (tmp_path / "their_trackers.py").write_text(TRACKERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))

    def configured(name: str, timeout_seconds: float = 60) -> RunConfig:
        node = {"_target_": f"their_trackers.{name}", "timeout_seconds": timeout_seconds}
        return dataclasses.replace(compose(), track=node, allow_targets=["their_trackers"])

    return configured


def test_a_tracker_of_ones_own(trackers: Callable[..., RunConfig], tmp_path: Path) -> None:
    assert mirrored(finished_run(tmp_path), trackers("Good")) == "specbench: mirrored by Good: kept, success\n"


@pytest.mark.parametrize(("name", "why"), [("Bad", "ConnectionError: no route to host, token=***"), ("Dead", "exit status 7")])
def test_a_failing_tracker_costs_one_line(trackers: Callable[..., RunConfig], tmp_path: Path, name: str, why: str) -> None:
    folder = finished_run(tmp_path)
    said = mirrored(folder, trackers(name))
    assert said == f"specbench: {name}: not mirrored: {why}; later: python -m specbench.track {folder}\n"


def test_a_hanging_tracker_is_stopped_with_its_helpers(
    trackers: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HELPER_PID", str(tmp_path / "pid"))
    said = mirrored(finished_run(tmp_path), trackers("Hung", timeout_seconds=4))
    assert "Hung: not mirrored: stopped after 4 s" in said
    helper = int((tmp_path / "pid").read_text())
    until = time.monotonic() + 10
    while _lives(helper) and time.monotonic() < until:
        time.sleep(0.05)
    assert not _lives(helper)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_run_ends_the_same_with_a_tracker_that_fails(
    trackers: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished_run(tmp_path)

    def run(config: RunConfig, on_open: Callable[[Path], None]) -> dict[str, Any]:
        on_open(folder)
        return {"status": "success"}

    monkeypatch.setattr("specbench.run.run.run", run)
    assert cli.run_tracked(trackers("Bad")) == {"status": "success"}
    assert "not mirrored" in capsys.readouterr().err

    def broken(config: RunConfig, on_open: Callable[[Path], None]) -> dict[str, Any]:
        on_open(folder)
        raise RuntimeError("out of memory")

    monkeypatch.setattr("specbench.run.run.run", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        cli.run_tracked(trackers("Good"))
    assert "mirrored by Good" in capsys.readouterr().err, "a run that failed is mirrored too"


def test_off_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose()
    assert tracker.create(config.track) is None
    monkeypatch.setattr("specbench.run.run.run", lambda config: {"status": "success"})
    monkeypatch.setattr(mirror, "mirror_apart", lambda *_: pytest.fail("nobody asked for a tracker"))
    assert cli.run_tracked(config) == {"status": "success"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+track.projekt=x"], r"track\.projekt='x': WandbTracker takes no such option; did you mean track\.project\?"),
        (["track.mode=ofline"], r"track\.mode='ofline': possible: online, offline"),
        (["track._target_=os.system"], r"track\._target_='os\.system': points outside"),
        (["track._target_=specbench.track.wandb.Tracker2"], r"is no Tracker; specbench\.track\.wandb has: WandbTracker"),
    ],
)
def test_wrong_options_stop_a_run_before_it_starts(overrides: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specbench.run.run.run", lambda *_: pytest.fail("it ran"))
    with pytest.raises(ConfigError, match=message):
        cli.run_tracked(compose("track=wandb", *overrides))
