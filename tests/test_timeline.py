"""The timeline: valid trace events, tracks without overlap, two lanes for a draft worker; and the footprint table."""

import dataclasses
import itertools
import json
import os
from typing import Any

import pytest
from fake_records import chain_rounds, failed, paired_run, record_of

from specbench.measure.records.store import round_columns
from specbench.measure.sensors import memory
from specbench.measure.timeline import build_trace

KEY = ("s", 0, 0, "method")


def slices(trace: dict[str, Any], **match: Any) -> list[dict[str, Any]]:
    return [e for e in trace["traceEvents"] if e["ph"] == "X" and all(e[k] == v for k, v in match.items())]


def overlaps(trace: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Pairs of neighbouring slices of one track that overlap by more than a rounding step."""
    found = []
    tracks = {(e["pid"], e["tid"]) for e in slices(trace)}
    for pid, tid in tracks:
        own = sorted(slices(trace, pid=pid, tid=tid), key=lambda e: e["ts"])
        found += [(a, b) for a, b in itertools.pairwise(own) if a["ts"] + a["dur"] > b["ts"] + 0.01]
    return found


def names(trace: dict[str, Any], kind: str) -> list[str]:
    return [e["args"]["name"] for e in trace["traceEvents"] if e["name"] == kind]


def test_both_arms_on_tracks_that_never_overlap() -> None:
    samples, rounds = paired_run(4, 2)
    trace = build_trace([*samples, failed(("f", 0, 0, "method"), 99)], rounds, devices={"target": "cuda:0", "draft": "cuda:1"})
    assert json.loads(json.dumps(trace, allow_nan=False)) == trace
    assert names(trace, "process_name") == ["method", "baseline"]
    assert names(trace, "thread_name") == ["samples", "target (cuda:0)", "draft (cuda:1)", "samples", "target (cuda:0)"]
    assert overlaps(trace) == []
    assert len(slices(trace, name="verify")) == sum(map(len, rounds.values()))
    assert len(slices(trace, name="prefill")) == len(samples)
    drafting = sum(e["dur"] for e in slices(trace, name="draft")) / 1e6
    assert drafting == pytest.approx(sum(r.draft_seconds for own in rounds.values() for r in own), rel=1e-4)
    from_files = build_trace(samples, {key: round_columns(own) for key, own in rounds.items()})["traceEvents"]
    for ours, theirs in zip(from_files, build_trace(samples, rounds)["traceEvents"], strict=True):
        assert ours["name"] == theirs["name"] and ours.get("ts", 0) == pytest.approx(theirs.get("ts", 0), abs=0.01)


def test_the_overlap_check_can_fail() -> None:
    samples, rounds = paired_run(2, 1)
    trace = build_trace(samples, rounds)
    slices(trace, name="verify")[0]["dur"] += 1e6
    assert overlaps(trace)


def test_order_within_a_round_and_marks() -> None:
    rounds = [dataclasses.replace(r, wait_seconds=0.001) for r in chain_rounds([4, 1], 4)]
    rounds[1] = dataclasses.replace(rounds[1], epoch=7)
    trace = build_trace([record_of(KEY, rounds)], {KEY: rounds})
    parts = sorted((e for e in slices(trace) if e["name"] in ("draft", "wait", "verify")), key=lambda e: e["ts"])
    assert [e["name"] for e in parts] == ["draft", "wait", "verify"] * 2
    marks = [e for e in trace["traceEvents"] if e["ph"] == "i"]
    assert [(m["name"], m["args"]["discarded"], m["args"]["epoch"]) for m in marks] == [("rollback", 3, 7)]
    counters = [e["args"]["tokens"] for e in trace["traceEvents"] if e["ph"] == "C"]
    assert counters == [4, 1]


def test_a_draft_worker_has_its_own_overlapping_lane() -> None:
    rounds = [dataclasses.replace(r, draft_seconds=0.0, verify_seconds=0.01) for r in chain_rounds([2, 2, 0], 2)]
    spans = {KEY: [(0.02, 0.035, "discarded_draft"), (0.0, 0.015, "draft"), (0.015, 0.0201, "idle")]}
    trace = build_trace([record_of(KEY, rounds)], {KEY: rounds}, spans=spans)
    assert overlaps(trace) == []
    worker = next(e["tid"] for e in slices(trace, name="discarded_draft"))
    assert worker != next(e["tid"] for e in slices(trace, name="verify"))
    verify, draft = slices(trace, name="verify")[0], slices(trace, name="draft")[0]
    assert verify["ts"] < draft["ts"] + draft["dur"] and draft["ts"] < verify["ts"] + verify["dur"]  # at the same time
    assert {e["tid"] for e in trace["traceEvents"] if e["ph"] == "i"} == {worker}
    assert "draft, own process" in names(trace, "thread_name")


def test_power_counters_share_the_axis_where_starts_are_known() -> None:
    rounds = chain_rounds([2], 4)
    record = record_of(KEY, rounds)
    power = [
        {"time_seconds": 100.5 + i, "device": "GPU-1", "role": "target", "watts": 200.0 + i, "temperature_celsius": None}
        for i in range(3)
    ]
    aligned = build_trace([record], {KEY: rounds}, power, starts={KEY: 100.005})
    counters = [e for e in aligned["traceEvents"] if e["ph"] == "C" and "watts" in e["name"]]
    assert [c["args"]["W"] for c in counters] == [200.0, 201.0, 202.0]
    assert counters[0]["ts"] == pytest.approx(0.5e6) and slices(aligned, name="prefill")[0]["ts"] == pytest.approx(0.0)
    apart = build_trace([record], {KEY: rounds}, power)
    assert min(e["ts"] for e in apart["traceEvents"] if e["ph"] == "C" and "watts" in e["name"]) == 0.0
    assert "power and temperature" in names(apart, "process_name")


# ---------------------------------------------------------------------------------------------------- memory
LLAMA_8B = {
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "head_dim": 128,
    "vocab_size": 128_256,
}


def test_predicted_footprint_of_a_known_model() -> None:
    """Llama-3.1-8B in bfloat16: 8.03e9 parameters, 128 KiB of keys and values a token, 16 GB of weights."""
    target = memory.Dimensions.of(LLAMA_8B, 8_030_261_248, "torch.bfloat16")
    assert target.kv_bytes(1) == 128 * 1024 and target.kv_bytes(8192) == 2**30
    assert target.weight_bytes == 16_060_522_496
    parts = memory.predict(target, target, max_tokens=1024, num_rows=6)
    assert parts["target_logits"] == 6 * 128_256 * 6 and parts["draft_kv"] == 2**27
    assert "draft_kv" not in memory.predict(target, None, max_tokens=1, num_rows=1)
    gpt2 = memory.Dimensions.of({"n_layer": 12, "n_head": 12, "n_embd": 768, "vocab_size": 50257}, 1, "float32")
    assert gpt2.kv_bytes(1) == 2 * 12 * 768 * 4


def test_unusual_caches_and_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match="kv_lora_rank"):
        memory.Dimensions.of({**LLAMA_8B, "kv_lora_rank": 512}, 1, "float32")
    with pytest.raises(ValueError, match="int3"):
        memory.Dimensions.of(LLAMA_8B, 1, "int3").kv_bytes(1)


def test_footprint_table_side_by_side() -> None:
    measured = {"target_weights": 101, "process_rss": 500, "device_peak": None}
    reasons = {"device_peak": "a CPU has no device allocator"}
    made = memory.footprint_table({"target_weights": 100, "target_kv": 10}, measured, reasons)
    rows = {row["part"]: row for row in made["rows"]}
    assert rows["target_weights"] == {"part": "target_weights", "predicted_bytes": 100, "measured_bytes": 101}
    assert rows["target_kv"]["measured_bytes"] is None and rows["target_kv"]["measured_bytes_why"] == "not measured"
    assert rows["device_peak"]["measured_bytes_why"] == "a CPU has no device allocator"
    assert made["predicted_total_bytes"] == 110


def test_process_size() -> None:
    rss, peak = memory.process_rss_bytes(), memory.process_peak_rss_bytes()
    assert rss is not None and peak is not None and 2**20 < rss <= peak * 1.01
    assert memory.process_rss_bytes(os.getpid()) is not None and memory.process_rss_bytes(2**22 + 1) is None
