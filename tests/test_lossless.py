"""The verdict: identical, tie or fault, with every differing sample listed."""

import dataclasses
from collections.abc import Sequence

import pytest
from fake_records import failed, paired_run

from specbench.measure import lossless
from specbench.measure.records.events import SampleRecord


def run_with(changes: dict[tuple[str, int], tuple[int, ...]], num_prompts: int = 4, repeats: int = 2) -> list[SampleRecord]:
    """A paired run whose method's outputs of (sample, repeat) are replaced."""
    samples, _ = paired_run(num_prompts, repeats)
    return [
        dataclasses.replace(r, output_ids=changes[(r.sample_id, r.repeat)])
        if r.arm == "method" and (r.sample_id, r.repeat) in changes
        else r
        for r in samples
    ]


def wrong_at(position: int, token: int = 999, sample: str = "s/1") -> tuple[int, ...]:
    """The sample's own output with one token replaced."""
    samples, _ = paired_run(4, 1)
    ids = list(next(r.output_ids for r in samples if r.sample_id == sample and r.arm == "method"))
    ids[position] = token
    return tuple(ids)


def test_identical() -> None:
    report = lossless.compare(run_with({}), claim="greedy-exact")
    assert (report.verdict, report.identical, report.compared, report.first_divergence) == ("identical", 8, 8, None)
    assert report.share_identical == 1.0 and report.baseline_repeatable and report.method_repeatable


def test_tie_and_fault_are_told_apart_by_the_gap() -> None:
    asked: list[tuple[str, Sequence[int], int, int]] = []

    def gap_of(record: SampleRecord, position: int, other: int) -> float | None:
        asked.append((record.sample_id, record.output_ids[:position], record.output_ids[position], other))
        return 3e-5 if asked[-1][2] == 999 else 0.5

    samples = run_with({("s/1", 0): wrong_at(5), ("s/1", 1): wrong_at(5)})
    report = lossless.compare(samples, claim="greedy-exact", gap_of=gap_of)
    assert report.verdict == "numerical_tie" and (report.identical, report.compared) == (6, 8)
    assert asked == [("s/1", (0, 1, 2, 3, 4), 999, 5)]  # a fresh forward over the common prefix, once for both repeats
    assert report.first_divergence is not None and report.first_divergence["position"] == 5
    assert [d["judgement"] for d in report.divergences] == ["numerical_tie"] * 2  # listed, not hidden
    again = {("s/1", 0): wrong_at(5), ("s/2", 0): wrong_at(5, 999, "s/2")}
    assert lossless.compare(run_with(again), claim="x", gap_of=gap_of).verdict == "numerical_tie"
    assert [sample for sample, *_ in asked[1:]] == ["s/1", "s/2"]  # alike but for the sample, whose noise is its own
    worse = lossless.compare(run_with({("s/1", 0): wrong_at(5), ("s/2", 0): wrong_at(3, 888, "s/2")}), claim="x", gap_of=gap_of)
    assert worse.verdict == "different" and worse.first_divergence is not None
    assert (worse.first_divergence["sample_id"], worse.first_divergence["gap"]) == ("s/2", 0.5)  # the fault, not the tie
    assert {d["sample_id"] for d in worse.divergences} == {"s/1", "s/2"}
    strict = lossless.compare(samples, claim="greedy-exact", gap_of=gap_of, dtype="float64")
    assert strict.verdict == "different"


def test_without_a_gap_no_tie_is_claimed() -> None:
    samples = run_with({("s/1", 0): wrong_at(5)})
    for gap_of in (None, lambda *_: None):
        report = lossless.compare(samples, claim="greedy-exact", gap_of=gap_of)
        assert report.verdict == "different" and report.divergences[0]["gap"] is None


def test_a_shorter_output_is_different_whatever_the_gap() -> None:
    short = wrong_at(5, 5)[:-3]
    report = lossless.compare(run_with({("s/1", 0): short}), claim="greedy-exact", gap_of=lambda *_: 0.0)
    assert report.verdict == "different"
    first = report.first_divergence or {}
    assert first["position"] == len(short) and first["method_token"] is None and first["baseline_token"] == len(short)
    assert "method ended earlier" in first["reason"]


def test_what_cannot_be_compared_is_counted_with_its_reason() -> None:
    samples = run_with({})
    samples = [dataclasses.replace(r, prompt_ids=(9,)) if r.key == ("s/0", 0, 0, "method") else r for r in samples]
    samples = [
        failed(r.key) if r.key == ("s/1", 0, 0, "baseline") else r for r in samples if r.key != ("s/2", 0, 1, "baseline")
    ]
    report = lossless.compare(samples, claim="greedy-exact")
    assert (report.verdict, report.compared) == ("identical", 5)
    assert sum(report.not_compared.values()) == 3 and len(report.not_compared) == 3
    refused = lossless.compare(samples, claim="lossy", refuse="the method's target has other weights")
    assert (refused.verdict, refused.compared, refused.share_identical) == ("not_compared", 0, None)
    assert refused.as_dict()["verdict_why"] == "the method's target has other weights"
    assert lossless.compare([], claim="x").verdict == "not_compared"


def test_repeats_that_disagree_are_seen() -> None:
    report = lossless.compare(run_with({("s/1", 1): wrong_at(5)}), claim="greedy-exact", gap_of=lambda *_: 0.0)
    assert report.method_repeatable is False and report.baseline_repeatable is True
    assert lossless.compare(run_with({}, repeats=1), claim="x").method_repeatable is None


@pytest.mark.parametrize(("dtype", "tie"), [("float32", False), ("torch.bfloat16", True), ("float16", False)])
def test_tolerance_depends_on_the_dtype(dtype: str, tie: bool) -> None:
    samples = run_with({("s/1", 0): wrong_at(5)})
    report = lossless.compare(samples, claim="greedy-exact", dtype=dtype, gap_of=lambda *_: 0.125)
    assert (report.verdict == "numerical_tie") is tie and report.tolerance_reason
    with pytest.raises(ValueError, match="int8"):
        lossless.tolerance_of("int8")
