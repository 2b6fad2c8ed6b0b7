"""The experiments zoo, asynchronous and stop: that no method, data set or policy is forgotten, and their tables on synthetic
runs.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from analysis_runs import write_run

from specbench.analysis.read.frames import load
from specbench.analysis.reports import experiments
from specbench.check.table import names
from specbench.config.compose import compose
from specbench.config.paths import CONF_DIR
from specbench.method import create_method
from specbench.parts.stops import STOPS


def test_every_method_on_every_data_set() -> None:
    params = yaml.safe_load((Path(CONF_DIR) / "experiment" / "zoo.yaml").read_text())["hydra"]["sweeper"]["params"]
    data = {path.stem for path in (Path(CONF_DIR) / "data").glob("*.yaml")}
    assert params["method"].split(",") == [name for name in names() if name != "autoregressive"]
    assert set(params["data"].split(",")) == data - {"prompts", "speed_bench"}


def test_what_is_kept_and_what_is_trained_stands_in_the_table(tmp_path: Path) -> None:
    write_run(tmp_path, "amusd", gamma=3, free=True, when=1)
    write_run(tmp_path, "speculative", when=2)
    for path in tmp_path.rglob("run.json"):
        run = json.loads(path.read_text())
        is_kept = run["method"] == "speculative"
        run["scopes"] = {"method": "session" if is_kept else "sample"}
        if is_kept:
            run["config"]["method"]["heads"] = "builtin"
        path.write_text(json.dumps(run))
    _, table = experiments.find("zoo").document(load([tmp_path]))
    said = [[row.cell(key).text() for key in ("method", "training", "state")] for row in table.rows]
    assert said == [["amusd", "-", "cold"], ["speculative", "heads", "kept"]]


def test_every_schedule_with_a_worker_stands_beside_its_bound(tmp_path: Path) -> None:
    jobs = yaml.safe_load((Path(CONF_DIR) / "experiment" / "asynchronous.yaml").read_text())["hydra"]["sweeper"]["jobs"]
    with_worker = {name for name in names() if create_method(compose([f"method={name}"]).method).needs.draft == "worker"}
    assert set(jobs[0][0].removeprefix("method=").split(",")) == {"speculative", *with_worker}
    write_run(tmp_path, "ssd", free=True, phase="hit", when=1)
    write_run(tmp_path, "amusd", gamma=3, free=True, when=2)
    write_run(tmp_path, "speculative", when=3)
    chain = Path(write_run(tmp_path, "pipespec", free=True, when=4)) / "run.json"
    facts = json.loads(chain.read_text())
    chain.write_text(json.dumps({**facts, "method_facts": {"method": {"num_processes": 3}, "baseline": {}}}))
    for path in tmp_path.rglob("summary.json"):
        summary = json.loads(path.read_text())
        summary["counted"] = {"unused_tokens": summary["decode_tokens"]} if summary["method"] == "ssd" else None
        path.write_text(json.dumps(summary))
    _, table = experiments.find("asynchronous").document(load([tmp_path]))
    said = [[row.cell(key).text() for key in ("method", "schedule", "hits")] for row in table.rows]
    assert said[:3] == [["speculative", "sequential", "-"], ["amusd", "free-running", "-"], ["ssd", "foreseeing", "100"]]
    assert said[3:] == [["pipespec", "no formula", "-"]], "a chain of drafts has none"
    plain, _, prepared, _ = (float(row.cell("wasted").text()) for row in table.rows)
    assert prepared == pytest.approx(plain + 1, abs=0.3)
    *known, none = (row.cell("predicted").text() for row in table.rows)
    assert all(float(speedup) > 0 for speedup in known) and none == "-"


def test_stops_stand_beside_the_best_fixed_length(tmp_path: Path) -> None:
    """Fixed 2 is the best of the fixed ones; a policy with better acceptance is more, one with worse is less."""
    svip = {"_target_": "specbench.parts.stops.entropy.Entropy", "form": "svip"}
    for when, (stop, length, alpha) in enumerate(
        [("fixed", 2, 0.7), (None, 8, 0.2), ("entropy", 8, 0.95), (svip, 8, 0.3), ("heuristic", 4, 0.7)], start=1
    ):
        options = {"draft_length": length, "stop": stop}
        write_run(tmp_path, gamma=2, alpha=alpha, options=options, when=when, prompts=tuple(range(16)))
    document, table = experiments.find("stop").document(load([tmp_path]))
    said = [[row.cell(key).text() for key in ("policy", "length", "against")] for row in table.rows]
    assert [row[:2] for row in said] == [
        ["fixed", "2"], ["fixed", "8"], ["entropy", "8"], ["entropy (form svip)", "8"], ["heuristic", "4"],
    ]  # fmt: skip
    assert [row[2] for row in said][:4] == ["best fixed", "less", "more", "less"]
    assert table.rows[0].cell("beside").text() in ("", "-"), "beside itself it says nothing"
    assert "the best fixed length is 2" in str(document.__dict__) and "More than it: entropy." in str(document.__dict__)


def test_the_experiment_names_every_stop_but_memory() -> None:
    config = yaml.safe_load((Path(CONF_DIR) / "experiment" / "stop.yaml").read_text())
    said = str(config["hydra"]["sweeper"]["jobs"])
    left = {name for name in STOPS if name not in said}
    assert left == {"hf", "memory"}, "hf is heuristic's other name"
