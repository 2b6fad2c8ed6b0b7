"""On an accelerator: whole runs. One device holds target and draft, in one process or in two.

In float32 every greedy method must give autoregression's ids; in bfloat16 a forward over several rows rounds differently from
one over a single row, so a difference may be a tie of the two best logits (`lossless.TIE_TOLERANCE`) and nothing else.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from run_folders import BUILTIN

from specbench.check.tiny_heads import make_tiny_heads
from specbench.config.compose import compose
from specbench.config.options import ConfigError
from specbench.config.paths import CONF_DIR
from specbench.config.schema import PairConfig
from specbench.measure import lossless
from specbench.measure.metrics import RoundTable, check_identities
from specbench.measure.records import provenance
from specbench.measure.records.store import TRACE_FILE, read_power, read_rounds, read_run, read_samples, read_summary
from specbench.measure.sensors import energy_pass, nvml
from specbench.method import create_method
from specbench.pair.load import check_pair, load_tokenizer
from specbench.pair.spec import specify
from specbench.parts.heads.files import find_heads
from specbench.run.run import run

pytestmark = pytest.mark.gpu

METHODS = sorted(path.stem for path in (CONF_DIR / "method").glob("*.yaml") if not path.stem.startswith("_"))
DRAFTING = [name for name in METHODS if name != "autoregressive"]
ON_DEVICE = [*BUILTIN, "pair.target_device=cuda", "pair.draft_device=cuda"]
SMALL = ["data=humaneval", "data.source=standin", "data.limit=3", "decoding.max_new_tokens=48", "measure.warmup=1"]
RUNS: dict[tuple[str, ...], tuple[dict[str, Any], Path]] = {}
HEADS: dict[str, Path] = {}  # by family, made once


@pytest.fixture
def finished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """finished(*overrides) -> (summary, run folder) of a small run; each once."""

    def do(*overrides: str) -> tuple[dict[str, Any], Path]:
        if overrides not in RUNS:
            folder = tmp_path_factory.mktemp("runs")
            where = [f"runs_dir={folder}", "device_lock=off", "measure.repeats=2", "measure.power=off"]
            config = compose([*ON_DEVICE, *SMALL, *where, *overrides])
            config.method = with_heads(config.method, folder)
            summary = run(config)
            RUNS[overrides] = (summary, Path(summary["run_folder"]))
        return RUNS[overrides]

    return do


def with_heads(node: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The method's node; where the built-in pair has no heads of its kind, with ones trained for a moment: as exact as any."""
    cls = type(create_method(node)).heads_class
    if cls is None or node.get("heads") is not None:
        return node
    try:
        find_heads(cls.family, None, "builtin:target")
    except ConfigError:
        on_cpu = PairConfig(target="builtin:target", target_device="cpu", target_dtype="float32")
        spec = specify(on_cpu)
        if cls.family not in HEADS:
            HEADS[cls.family] = folder / "heads"
            make_tiny_heads(cls, check_pair(spec, load_tokenizer(spec.target)), HEADS[cls.family], steps=20)
        return {**node, "heads": str(HEADS[cls.family])}
    return node


def of_type(dtype: str) -> list[str]:
    return [f"pair.{role}_dtype={dtype}" for role in ("target", "draft")]


# ------------------------------------------------------------------------------------------------ the output and its records
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", DRAFTING)
def test_greedy_output_is_autoregressions(finished: Any, method: str, dtype: str) -> None:
    summary, _ = finished(f"method={method}", *of_type(dtype))
    verdict = summary["lossless"]
    assert summary["status"] == "success" and verdict["compared"] == 6
    if not verdict["claim"].endswith("-exact"):
        pytest.skip(f"{method} claims no exact output ({verdict['claim']})")
    allowed = [lossless.IDENTICAL] if dtype == "float32" else [lossless.IDENTICAL, lossless.TIE]
    assert verdict["verdict"] in allowed, verdict["divergences"]
    assert verdict["tolerance"] == lossless.tolerance_of(dtype)


@pytest.mark.parametrize("method", [name for name in DRAFTING if name in ("speculative", "amusd", "pearl")])
def test_sampled_output_is_autoregressions(finished: Any, method: str) -> None:
    """Keyed noise: the same tokens at temperature 0.8, up to a tie of the two best keyed scores."""
    summary, _ = finished(f"method={method}", "decoding.temperature=0.8", *of_type("float32"))
    assert summary["lossless"]["verdict"] in (lossless.IDENTICAL, lossless.TIE), summary["lossless"]["divergences"]
    assert summary["lossless"]["share_identical"] >= 0.5


@pytest.mark.parametrize("method", ["autoregressive", "speculative", "pearl", "amusd", "ssd"])
def test_graphs_keep_the_output_and_say_what_they_hold(finished: Any, method: str) -> None:
    """Chains and verdicts as CUDA graphs, in workers too."""
    summary, _ = finished(f"method={method}", "engine=graph", *of_type("float32"))
    assert summary["status"] == "success" and summary["lossless"]["verdict"] == lossless.IDENTICAL, summary["lossless"]
    assert summary["backend"] == "graph"
    rows = {row["part"]: row["measured_bytes"] for row in summary["memory"]["rows"]}
    for role in ("target",) if method == "autoregressive" else ("target", "draft"):
        assert rows[f"{role}_programs"] > 0 and rows[f"{role}_recordings"] >= 0


@pytest.mark.parametrize("method", METHODS)
def test_records_agree_with_themselves_and_with_the_clock(finished: Any, method: str) -> None:
    summary, folder = finished(f"method={method}", *of_type("float32"))
    samples, rounds = read_samples(folder), read_rounds(folder)
    check_identities(samples, RoundTable.of(rounds))  # tokens, and draft + verify + wait <= decode within 1 %
    for record in samples:
        assert record.error is None and record.decode_seconds and record.prefill_seconds
        columns = rounds[record.key]
        spent = sum(end - start for start, end in zip(columns["t_start"], columns["t_end"], strict=True))
        assert spent == pytest.approx(record.decode_seconds, rel=0.01, abs=1e-3)
        busy = zip(columns["verify_seconds"], columns["num_target_rows"], strict=True)
        assert all(seconds > 0 for seconds, rows in busy if rows)
    seconds = summary["seconds"]
    assert sum(seconds.values()) == pytest.approx(summary["decode_seconds"], rel=0.01) and min(seconds.values()) > -1e-3
    if method in ("amusd", "pearl"):
        assert summary["concurrent_seconds"]["draft"] > 0
        assert any("share cuda:0" in text for text in summary["warnings"]), "one device's turns are no basis for speed"


@pytest.mark.parametrize("method", METHODS)
def test_memory_peaks_hold_at_least_the_weights(finished: Any, method: str) -> None:
    summary, folder = finished(f"method={method}", *of_type("float32"))
    rows = {row["part"]: row["measured_bytes"] for row in summary["memory"]["rows"]}
    loaded = rows["target_weights"] + (0 if method in ("amusd", "pearl") else rows.get("draft_weights") or 0)
    total = torch.cuda.get_device_properties(0).total_memory
    assert loaded > 10e6
    for record in read_samples(folder):
        assert record.memory_peak_bytes is not None and loaded <= record.memory_peak_bytes < total
    assert summary["memory_peak_bytes"] == rows["method_device_peak"] >= loaded
    if method in ("amusd", "pearl"):  # the draft's process counts for itself, on the same device
        assert rows["draft_weights"] <= rows["draft_device_peak"] < total and rows["draft_kv"] > 0
    assert summary["device"] == "cuda:0"


# ------------------------------------------------------------------------------------------------------------- the device
def test_facts_of_the_device_are_in_the_provenance(finished: Any) -> None:
    _, folder = finished("method=autoregressive", *of_type("float32"))
    uuid = nvml.uuid_of_cuda_device(0)
    gpus = read_run(folder)["provenance"]["gpus"]
    (mine,) = [facts for facts in gpus if facts["uuid"] == uuid]
    assert mine["name"] == torch.cuda.get_device_name(0) and mine["driver"]
    assert mine["power_limit_watts"] > 50 and 0 < mine["sm_clock_mhz"] <= mine["max_sm_clock_mhz"]
    assert mine["memory_bytes"] == pytest.approx(torch.cuda.get_device_properties(0).total_memory, rel=0.1)
    assert provenance.collect()["gpus"][0]["uuid"] == gpus[0]["uuid"]


def test_the_total_energy_counter_rises_and_the_sensors_answer() -> None:
    (device,) = nvml.devices([nvml.uuid_of_cuda_device(0)])
    first, why = device.energy_joules()
    assert first is not None, why
    begin = time.perf_counter()
    time.sleep(1.0)
    last, _ = device.energy_joules()
    watts = (last - first) / (time.perf_counter() - begin)  # type: ignore[operator]
    row = device.sample()
    assert 10 < watts < 1000 and 10 < row["watts"] < 1000 and "watts_why" not in row
    assert 0 <= row["utilisation"] <= 1 and row["memory_bytes"] > 0 and 10 < row["temperature_celsius"] < 100
    assert row["sm_clock_mhz"] > 0 and row["memory_clock_mhz"] > 0 and row["throttle_bits"] is not None


# ----------------------------------------------------------------------------------------------------- energy and timeline
@pytest.mark.parametrize("method", [name for name in DRAFTING if name in ("speculative", "pearl")])
def test_the_energy_pass_attributes_what_the_counter_says(finished: Any, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Blocks of 2 s here, where 10 s are the rule: the run warns of it."""
    monkeypatch.setattr(energy_pass, "abba_pass", functools.partial(energy_pass.abba_pass, min_seconds=2.0))
    monkeypatch.setattr(energy_pass, "idle_watts", functools.partial(energy_pass.idle_watts, seconds=2.0))
    summary, folder = finished(f"method={method}", "measure.power=auto")
    check_energy(summary, folder, block_seconds=2.0)
    assert any("energy blocks as short as" in text for text in summary["warnings"])


def check_energy(summary: dict[str, Any], folder: Path, block_seconds: float) -> None:
    energy = summary["energy"]
    assert energy["source"] == "nvml_counter", energy
    for arm in ("", "baseline_"):
        assert 0 < energy[f"{arm}joules_per_token"] < 1000
        assert energy[f"{arm}net_joules_per_token"] < energy[f"{arm}joules_per_token"]
        assert energy[f"{arm}seconds"] >= 2 * block_seconds
        assert sum(energy[f"{arm}joules_by_part"].values()) == pytest.approx(energy[f"{arm}joules"], rel=1e-6)
    parts = energy["joules_by_part"]
    assert parts["verify"] > 0 and parts["draft"] + parts["discarded_draft"] > 0
    assert energy["baseline_joules_by_part"]["draft"] < 0.05 * energy["baseline_joules"], "the time of proposing nothing"
    assert energy["attribution_rule"]
    uuid = nvml.uuid_of_cuda_device(0)
    assert [device["device"] for device in energy["devices"] if device["counted"]] == [uuid]
    assert 10 < energy["idle_watts"][uuid] < 1000
    rows = [row for row in read_power(folder) if row["device"] == uuid]
    assert len(rows) >= 5 * block_seconds * 5, "10 readings a second, half of them at the least"
    assert max(row["watts"] for row in rows) > energy["idle_watts"][uuid] * 1.02
    assert not any("other processes" in text for text in summary["warnings"]), "the draft's process is the run's own"


def test_the_command_leaves_energy_power_and_timeline(tmp_path: Path) -> None:
    """The whole front door, with blocks of 10 s."""
    options = ["method=amusd", *ON_DEVICE, *SMALL, "measure.repeats=1", "measure.trace=true", f"runs_dir={tmp_path / 'runs'}"]
    done = subprocess.run(
        [sys.executable, "-m", "specbench", *options, "device_lock=off"],
        cwd=tmp_path,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / json.loads(done.stdout.splitlines()[-1])["run_folder"]
    summary = read_summary(folder)
    assert summary["lossless"]["verdict"] in (lossless.IDENTICAL, lossless.TIE)
    check_energy(summary, folder, block_seconds=10.0)
    trace = json.loads((folder / TRACE_FILE).read_text())
    named = {event["args"].get("name", "") for event in trace["traceEvents"] if event["ph"] == "M"}
    assert any(name.startswith("target (cuda:0") for name in named) and any("draft (cuda:0" in name for name in named)
    counters = {event["name"].split()[0] for event in trace["traceEvents"] if event["ph"] == "C"}
    assert {"watts", "accepted"} <= counters
    slices = {event["name"] for event in trace["traceEvents"] if event["ph"] == "X"}
    assert {"prefill", "verify", "draft"} <= slices
