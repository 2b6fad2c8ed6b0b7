"""summary.json: the promised keys, null with a reason, and the same document from the files alone."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from fake_records import failed, paired_run

import specbench
from specbench.measure import lossless, metrics, summary, warnings
from specbench.measure.headlines import HEADLINES, headlines
from specbench.measure.noise import find_noise_floor
from specbench.measure.records import store
from specbench.measure.records.store import RunStore

PROMISED = [
    "run_folder", "status", "method", "baseline", "pair", "data", "device", "num_rounds", "decode_tokens",
    "decode_tokens_per_second", "baseline_decode_tokens_per_second", "speedup", "emitted_per_round", "accepted_per_round",
    "acceptance_rate", "acceptance_by_position", "rollbacks", "num_discarded", "stale_rounds", "seconds", "concurrent_seconds",
    "counted", "lossless", "energy", "memory_peak_bytes", "warnings",
]  # fmt: skip

CONFIG: dict[str, Any] = {
    "pair": {"target": "builtin:target", "draft": "builtin:draft"},
    "data": {"name": "humaneval", "source": "standin"},
    "measure": {"mode": "paired"},
    "method_name": "speculative",
    "baseline_name": "autoregressive",
}
RUN = {
    "status": "success",
    "method": "speculative",
    "baseline": "autoregressive",
    "config": CONFIG,
    "run_folder": "runs/x",
    "num_devices": 2,
}


def build(samples: list[Any], rounds: Any, run: dict[str, Any] = RUN, **options: Any) -> dict[str, Any]:
    return summary.build_summary(run, samples, rounds, resamples=500, **options)


def nulls_without_reason(value: Any, path: str = "") -> list[str]:
    """Paths of null figures that have no `_why` beside them (names of models and the like may be null)."""
    found: list[str] = []
    if isinstance(value, dict):
        for key, item in value.items():
            if item is None and not value.get(f"{key}_why") and not key.endswith("_why"):
                found.append(f"{path}{key}")
            found += nulls_without_reason(item, f"{path}{key}.")
    return found


def test_right_answers_are_counted_by_arm_and_only_where_they_were_graded() -> None:
    samples, rounds = paired_run()
    assert not [key for key in build(samples, rounds) if "right" in key or "graded" in key]
    first = samples[0].sample_id
    graded = [dataclasses.replace(r, right=r.arm == "baseline") if r.sample_id == first else r for r in samples]
    made = build(graded, rounds)
    count = sum(r.sample_id == first and r.arm == "method" for r in samples)
    assert (made["num_graded"], made["num_right"]) == (count, 0)
    assert (made["baseline_num_graded"], made["baseline_num_right"]) == (count, count)


def test_a_paired_run_has_every_promised_key() -> None:
    samples, rounds = paired_run(12, 3, speedup=1.5, noise=0.005)
    report = lossless.compare(samples, claim="greedy-exact").as_dict()
    made = build(samples, rounds, lossless=report, warnings=["look here", "look here"])
    assert [key for key in PROMISED if key not in made] == []
    json.dumps(made, allow_nan=False)
    assert nulls_without_reason({k: v for k, v in made.items() if k != "lossless"}) == ["device"]
    assert made["speedup"]["ratio_of_totals"] == pytest.approx(1.5, rel=0.01)
    assert made["decode_tokens_per_second"] / made["baseline_decode_tokens_per_second"] == pytest.approx(
        made["speedup"]["ratio_of_totals"]
    )
    assert made["decode_tokens_per_second_per_device"] == pytest.approx(made["decode_tokens_per_second"] / 2)
    assert made["emitted_per_round"] == pytest.approx(made["decode_tokens"] / made["num_rounds"]) == 3.0
    assert (made["acceptance_rate"], made["acceptance_by_position"]) == (0.5, [1.0, 1.0, 0.0, 0.0])
    assert sum(made["seconds"].values()) == pytest.approx(made["decode_seconds"], rel=0.01)
    assert made["repeats"] == 3 and made["warnings"].count("look here") == 1 and "only 12 prompts" in "".join(made["warnings"])
    assert made["energy"]["joules_per_token"] is None and made["energy"]["joules_per_token_why"]


def test_only_the_methods_arm_counts_as_the_method() -> None:
    samples, rounds = paired_run(6, 2)
    made = build(samples, rounds)
    assert made["num_rounds"] == sum(len(r) for key, r in rounds.items() if key[3] == "method")
    assert made["decode_tokens"] == sum(r.num_emitted or 0 for r in samples if r.arm == "method")
    assert made["baseline_seconds"]["draft"] == 0.0 < made["seconds"]["draft"]


@pytest.mark.parametrize("arm", ["method", "baseline"])
def test_a_run_of_the_baseline_itself_has_one_arm(arm: str) -> None:
    samples, rounds = paired_run(6, 2)
    own = [dataclasses.replace(r, arm=arm) for r in samples if r.arm == "baseline"]
    own_rounds = {(*key[:3], arm): r for key, r in rounds.items() if key[3] == "baseline"}
    made = build(own, own_rounds, {**RUN, "method": "autoregressive"})
    assert made["speedup"] is None and "one arm" in made["speedup_why"]
    assert made["baseline_decode_tokens_per_second"] is None and made["decode_tokens_per_second"] == pytest.approx(
        100, rel=0.05
    )
    assert made["acceptance_rate"] is None and made["acceptance_rate_why"] and made["emitted_per_round"] == 1.0
    assert nulls_without_reason({k: v for k, v in made.items() if k != "lossless"}) == ["device"]


def test_an_aa_run_keeps_its_speedup_as_the_noise_floor() -> None:
    samples, rounds = paired_run(60, 3, speedup=1.0, noise=0.03)
    config = {**CONFIG, "measure": {"mode": "aa"}, "method_name": "autoregressive"}
    made = build(samples, rounds, {**RUN, "method": "autoregressive", "config": config})
    low, high = made["speedup"]["ci95"]
    assert made["mode"] == "aa" and low < 1 < high and made["speedup"]["distinguishable"] is False
    faster, faster_rounds = paired_run(60, 3, speedup=1.02, noise=0.001)
    assert build(faster, faster_rounds)["speedup"]["distinguishable"] is True
    inside = build(faster, faster_rounds, noise_floor=(0.9, 1.1))["speedup"]
    assert inside["distinguishable"] is False and "noise floor" in inside["distinguishable_why"]


def test_the_headlines_are_the_summarys_own_and_documented() -> None:
    samples, rounds = paired_run(12, 2)
    made = build(samples, rounds)
    head = headlines(made)

    def leaves(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, item in value.items():
            found |= leaves(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item}
        return found

    found, whole = leaves(head), leaves(made)
    assert all(whole[name] == value for name, value in found.items())
    absent = {"speedup", "speedup_why", "num_graded", "num_right", "data.source"}
    assert set(HEADLINES) - absent == set(found) - {"data.source"}
    assert len(json.dumps(head)) < 1_200 < len(json.dumps(made)) / 2
    page = (Path(__file__).parents[1] / "docs" / "results.md").read_text()
    assert [name for name in HEADLINES if f"`{name.rpartition('.')[2]}`" not in page] == []
    alone = headlines({**made, "speedup": None, "speedup_why": "one arm"})
    assert alone["speedup"] is None and alone["speedup_why"] == "one arm"


def test_failures_are_counted_and_named_and_have_no_numbers() -> None:
    samples, rounds = paired_run(6, 1)
    gone = [failed(r.key, r.order) if r.key == ("s/0", 0, 0, "method") else r for r in samples]
    gone.append(failed(("long", 0, 0, "method"), 99, "prompt_too_long", None))
    made = build(gone, rounds)  # the failed sample's rounds are still there: what it left behind
    assert (made["num_failed"], made["num_prompt_too_long"]) == (1, 1)
    assert made["num_rounds"] == sum(len(r) for key, r in rounds.items() if key[3] == "method" and key[0] != "s/0")
    assert any("s/0" in w and "out of memory" in w for w in made["warnings"])
    all_gone = build([failed(r.key, r.order) for r in samples], {})
    assert (
        all_gone["speedup"] is None and all_gone["decode_tokens_per_second"] is None and all_gone["emitted_per_round"] is None
    )
    assert nulls_without_reason({k: v for k, v in all_gone.items() if k != "lossless"}) == ["device"]


def test_contradictory_records_give_no_summary() -> None:
    samples, rounds = paired_run(3, 1)
    samples[0] = dataclasses.replace(samples[0], output_ids=samples[0].output_ids[:-1])
    with pytest.raises(metrics.IdentityError, match="output length"):
        build(samples, rounds)


def test_unequal_lengths_are_warned_about() -> None:
    samples, rounds = paired_run(3, 1)
    key = ("s/0", 0, 0, "method")
    rounds[key] = rounds[key][:-1]
    emitted = sum(r.num_emitted for r in rounds[key])
    changes = {"output_ids": tuple(range(emitted + 1)), "num_emitted": emitted, "num_rounds": len(rounds[key])}
    samples = [dataclasses.replace(r, **changes) if r.key == key else r for r in samples]
    made = build(samples, rounds)
    assert not made["speedup"]["same_lengths"] and any("different numbers of tokens" in w for w in made["warnings"])


# ---------------------------------------------------------------------------------------------------- weight of warnings
def test_warnings_stand_by_weight() -> None:
    samples, rounds = paired_run(12, 3, speedup=1.5, noise=0.2)
    standin = "stand-in data, not humaneval: 27 samples written for this project (why)"
    said = ["nobody listed this", "other processes kept 1.2 of 2 cores busy while prompts were timed", standin]
    wrong = {"claim": "greedy-exact", "verdict": "different", "identical": 35, "compared": 36, "first_divergence": None}
    made = build(samples, rounds, lossless=wrong, warnings=said)
    first, second, *_ = made["warnings"]
    assert first == "outputs differ from the baseline's in 1 of 36 cases, although the claim is greedy-exact"
    assert second == standin
    assert [made["warnings"].index(text) for text in (said[1], said[0])] == [2, 3]
    assert "only 12 prompts" in made["warnings"][4] and made["warnings"][5].startswith("method: times of one prompt spread by")
    assert made["warning_levels"] == ["unusable"] * 2 + ["doubtful"] * 2 + ["usual"] * (len(made["warnings"]) - 4)
    fine = build(samples, rounds, lossless={**wrong, "verdict": "numerical_tie"})
    assert not any("outputs differ" in text for text in fine["warnings"]), "a tie is no fault"
    lossy = build(samples, rounds, lossless={**wrong, "claim": "lossy"})
    assert lossy["warnings"][0].startswith("the method is lossy") and lossy["warning_levels"][0] == "doubtful"


def unwritten(phrases: Any, source: str) -> list[str]:
    """Parts of the phrases that no author writes."""
    parts = (part for phrase in phrases for part in re.split(r"\.\*|\(method\|baseline\)|[\^$|]", phrase))
    return [part for part in parts if part.replace("\\", "") not in source]


def test_every_warning_with_a_weight_is_one_that_somebody_writes() -> None:
    files = [p for p in Path(specbench.__path__[0]).rglob("*.py") if p.name != "warnings.py"]
    source = "\n".join(path.read_text() for path in files)
    for phrases in warnings.PHRASES.values():
        assert unwritten(phrases, source) == []
    assert unwritten(["^stand-in data, never "], source) == ["stand-in data, never "]


def test_what_several_runs_say_is_one_sentence_with_spans() -> None:
    spread = "method: times of one prompt spread by {}% over repeats (above 5%)"
    drift = "baseline: became {}% slower over the run (drift)"
    runs = {"a": [spread.format(8.1), drift.format(9)], "b": [spread.format("1,015.5")], "c": ["new", spread.format(9)]}
    found = warnings.kinds(runs)
    assert [(kind.level, kind.sources) for kind in found] == [
        ("doubtful", ("a",)), ("doubtful", ("c",)), ("usual", ("a", "b", "c"))
    ]  # fmt: skip
    assert found[2].text == spread.format("8.1 to 1,015.5") and found[0].text == drift.format(9)


def test_rebuilt_from_the_files(tmp_path: Path) -> None:
    samples, rounds = paired_run(6, 2)
    made = RunStore.create(tmp_path, "speculative", "humaneval", CONFIG)
    made.write_run({"baseline": "autoregressive", "num_devices": 1})
    for record in samples:
        made.append(record, rounds[record.key])
    report = lossless.compare(samples, claim="greedy-exact").as_dict()
    made.set_status("success")
    original = summary.build_summary(
        {**made.run, "run_folder": str(made.folder)},
        samples,
        rounds,
        lossless=report,
        warnings=["said once"],
    )
    made.write_summary(original)
    made.close()
    again = summary.rebuild(made.folder)
    for key in original.keys() | again.keys():
        assert close(again[key], original[key]), key
    (made.folder / store.SUMMARY_FILE).unlink()
    path = made.folder / store.SAMPLES_FILE
    path.write_bytes(path.read_bytes()[:-40])  # a killed run: no summary, a torn line, one sample's rounds too many
    with pytest.warns(store.TornLineWarning):
        cut = summary.rebuild(made.folder)
    assert cut["lossless"]["verdict"] == "identical" and cut["speedup"] is not None
    assert len(store.read_rounds(made.folder)) == len(samples) and cut["lossless"]["compared"] == 11  # of 12


def test_noise_floor_of_the_same_conditions_only(tmp_path: Path) -> None:
    def finished(mode: str, low: float, conditions: str = "here", **config: Any) -> dict[str, Any]:
        made = RunStore.create(tmp_path, "autoregressive", "humaneval", {**CONFIG, "measure": {"mode": mode}, **config})
        made.write_run({"baseline": "autoregressive", "device": "cpu", "provenance": {"conditions_hash": conditions}})
        made.write_summary({"speedup": {"ci95": [low, 1.01]}})
        made.set_status("success")
        return made.run

    mine = finished("paired", 0.5)
    assert find_noise_floor(tmp_path, mine) is None
    finished("aa", 0.97)
    finished("aa", 0.80, conditions="another machine")
    finished("aa", 0.81, decoding={"temperature": 1.0})
    finished("aa", 0.82, pair={"target": "other", "draft": None})
    assert find_noise_floor(tmp_path, mine) == (0.97, 1.01)
    other_draft = finished("paired", 0.5, pair={**CONFIG["pair"], "draft": "bigger"})  # the floor is the target's
    assert find_noise_floor(tmp_path, other_draft) == (0.97, 1.01)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / store.RUN_FILE).write_text("{")
    assert find_noise_floor(tmp_path, mine) == (0.97, 1.01)


def close(a: Any, b: Any) -> bool:
    """Equal but for the nanosecond to which the files round seconds."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(close(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == pytest.approx(b, rel=1e-6)) if isinstance(a, float) else bool(a == b)
