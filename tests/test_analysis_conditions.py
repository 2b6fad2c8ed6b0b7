"""What may stand in one table: conditions, identities by content, repetitions, common prompts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from analysis_runs import write_run

from specbench.analysis.derive.conditions import differences, groups
from specbench.analysis.derive.derive import comparisons, ratio_of_speedups, restrict
from specbench.analysis.read.frames import load
from specbench.analysis.show.across import across_machines
from specbench.measure import stats


def test_equal_conditions_make_one_group(tmp_path: Path) -> None:
    write_run(tmp_path, "speculative", when=1)
    write_run(tmp_path, "amusd", free=True, when=2)
    frames = load([tmp_path])
    found = groups(frames)
    assert [len(group.runs) for group in found] == [2]
    assert differences(frames.facts[0], frames.facts[1]) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"conditions": "c1", "gpu": "NVIDIA H200"}, "device cpu against cuda:0"),
        ({"conditions": "c1"}, "conditions_hash differs"),
        ({"temperature": 1.0}, "decoding.temperature 0.0 against 1.0"),
        ({"backend": "native"}, "engine.backend eager against native"),
    ],
)
def test_other_conditions_are_never_mixed(tmp_path: Path, change: dict[str, object], reason: str) -> None:
    write_run(tmp_path, "speculative", when=1)
    write_run(tmp_path, "amusd", free=True, when=2)
    write_run(tmp_path, "pearl", free=True, when=3, **change)  # type: ignore[arg-type]
    frames = load([tmp_path])
    found = groups(frames)
    assert [sorted(group.runs["method"]) for group in found] == [["amusd", "speculative"], ["pearl"]]
    assert reason in differences(frames.facts[0], frames.facts[2])


def test_other_code_is_named(tmp_path: Path) -> None:
    from analysis_runs import provenance

    write_run(tmp_path, when=1)
    write_run(tmp_path, when=2, run_changes={"provenance": provenance("c1", commit="b" * 40)})
    frames = load([tmp_path])
    assert differences(frames.facts[0], frames.facts[1]) == ["git.commit aaaaaaaaaaaa... against bbbbbbbbbbbb..."]


def test_one_name_for_two_targets_is_told_apart(tmp_path: Path) -> None:
    write_run(tmp_path, when=1)
    write_run(tmp_path, when=2, target_sha="other-weights")
    group = groups(load([tmp_path]))[0]
    assert len(set(group.runs["pair_label"])) == 2
    assert any("other-we" in label for label in group.runs["pair_label"])
    assert len(group.cells()) == 2


def test_one_name_for_two_contents_is_told_apart(tmp_path: Path) -> None:
    write_run(tmp_path, when=1)
    write_run(tmp_path, "amusd", free=True, when=2, content="edited-prompts")
    assert len(groups(load([tmp_path]))[0].cells()) == 2


def test_labels_name_what_varies_and_nothing_else(tmp_path: Path) -> None:
    write_run(tmp_path, gamma=2, when=1)
    write_run(tmp_path, gamma=4, when=2)
    write_run(tmp_path, "amusd", gamma=3, free=True, options={"max_lookahead": 16}, when=3)
    labels = groups(load([tmp_path]))[0].runs["label"].tolist()
    assert labels == ["speculative (draft_length=2)", "speculative (draft_length=4)", "amusd"]


def test_one_option_for_two_heads_is_told_apart(tmp_path: Path) -> None:
    for when, sha256 in enumerate(("first-heads", "other-heads", "other-heads"), start=1):
        write_run(tmp_path, "medusa", when=when, run_changes={"folders": {"method.heads": sha256, "baseline.heads": str(when)}})
    group = groups(load([tmp_path]))[0]
    assert len(set(group.runs["label"])) == len(group.runs) == 2 and len(group.left_out) == 1
    assert any("other-he" in label for label in group.runs["label"])


def test_a_part_that_one_option_asks_for_is_no_other_draft(tmp_path: Path) -> None:
    """A stop with a head beside one without. The twin: another draft is named."""
    for when, (stop, folders) in enumerate((("hf", {}), ("specdec_pp", {"method.stop.head": "abcdefgh"})), start=1):
        write_run(tmp_path, options={"stop": stop}, when=when, run_changes={"folders": folders})
    assert groups(load([tmp_path]))[0].runs["label"].tolist() == ["speculative (stop=hf)", "speculative (stop=specdec_pp)"]
    write_run(tmp_path, options={"stop": "specdec_pp"}, when=3, run_changes={"folders": {"method.stop.head": "ijklmnop"}})
    write_run(tmp_path, options={"stop": "hf"}, draft="small", when=4)
    assert groups(load([tmp_path]))[0].runs["label"].tolist() == [
        "speculative (stop=hf, draft=draft)",
        "speculative (stop=specdec_pp, draft=draft (abcdefgh))",
        "speculative (stop=specdec_pp, draft=draft (ijklmnop))",
        "speculative (stop=hf, draft=small)",
    ]


def test_repetition_counts_once_and_says_so(tmp_path: Path) -> None:
    old = write_run(tmp_path, seed=1, when=1)
    new = write_run(tmp_path, seed=2, when=2)
    group = groups(load([tmp_path]))[0]
    assert group.runs["folder"].tolist() == [str(new)]
    assert [item.folder for item in group.left_out] == [str(old)]
    assert str(new) in group.left_out[0].why


def test_noise_floor_is_no_row(tmp_path: Path) -> None:
    write_run(tmp_path, when=1)
    write_run(tmp_path, "autoregressive", gamma=0, mode="aa", when=2)
    group = groups(load([tmp_path]))[0]
    assert group.runs["method"].tolist() == ["speculative"]
    assert group.noise_floors["mode"].tolist() == ["aa"]


def test_comparison_uses_common_prompts(tmp_path: Path) -> None:
    write_run(tmp_path, "speculative", prompts=range(12), when=1)
    write_run(tmp_path, "amusd", free=True, prompts=range(4, 16), when=2, seed=1)
    frames = load([tmp_path])
    comparison = comparisons(frames, groups(frames)[0])[0]
    assert set(comparison.prompts) == {f"humaneval/{p}" for p in range(4, 12)}
    assert "8 prompts that all runs finished (they finished 12 to 12)" in comparison.notes[0]
    pairs = frames.pairs[0]
    expected = stats.paired_speedup(restrict(pairs, [int(p.split("/")[1]) >= 4 for p in pairs.prompts]))
    found = comparison.speedup(0)
    assert found is not None
    assert found.value == pytest.approx(expected.ratio_of_totals)
    assert found.value != pytest.approx(frames.runs.loc[0, "speedup"], rel=1e-9)
    assert {key[0] for key in comparison.rounds(0).keys} == set(comparison.prompts)
    tokens = int(comparison.rounds(0).num_emitted.sum())
    assert comparison.per_round(0, "emitted_per_round") == pytest.approx(tokens / len(comparison.rounds(0)))
    assert comparison.figures(0)["num_prompts"] == 8


def test_equal_prompts_need_no_note(tmp_path: Path) -> None:
    write_run(tmp_path, "speculative", when=1)
    write_run(tmp_path, "amusd", free=True, when=2)
    frames = load([tmp_path])
    comparison = comparisons(frames, groups(frames)[0])[0]
    assert not comparison.restricted
    assert not comparison.notes
    found = comparison.speedup(1)
    assert found is not None
    assert (found.value, found.low) == (frames.runs.loc[1, "speedup"], frames.runs.loc[1, "speedup_low"])


def test_runs_without_a_common_prompt_are_not_compared(tmp_path: Path) -> None:
    write_run(tmp_path, "speculative", prompts=range(12), when=1)
    lost = write_run(tmp_path, "amusd", free=True, prompts=range(100, 105), when=2)
    frames = load([tmp_path])
    comparison = comparisons(frames, groups(frames)[0])[0]
    assert comparison.runs["method"].tolist() == ["speculative"]
    assert comparison.left_out[0].folder == str(lost)
    assert "no prompt in common" in comparison.left_out[0].why


def test_ratio_of_speedups_takes_out_the_machine(tmp_path: Path) -> None:
    write_run(tmp_path, "speculative", prompts=range(20), when=1)
    write_run(tmp_path, "amusd", free=True, gamma=3, prompts=range(20), when=2, seed=4)
    frames = load([tmp_path])
    ratio = ratio_of_speedups(frames.pairs[1], frames.pairs[0])
    assert ratio is not None
    assert ratio.value == pytest.approx(frames.runs.loc[1, "speedup"] / frames.runs.loc[0, "speedup"])
    assert ratio.low is not None and ratio.high is not None
    assert ratio.low < ratio.value < ratio.high
    slower = frames.pairs[1]
    for arm in (slower.method, slower.baseline):  # a machine at half speed, in both arms of the second run
        arm.decode_seconds[:] *= 2
    again = ratio_of_speedups(slower, frames.pairs[0])
    assert again is not None
    assert again.value == pytest.approx(ratio.value)


def test_across_machines_lists_and_never_averages(tmp_path: Path) -> None:
    write_run(tmp_path, gamma=2, when=1)
    write_run(tmp_path, gamma=4, when=2)
    write_run(tmp_path, gamma=4, when=3, conditions="c1", gpu="NVIDIA H200", seed=3)
    frames = load([tmp_path])
    table = across_machines(frames, groups(frames))
    assert [row.cell("machine").text() for row in table.rows] == ["Synthetic CPU (8 cores)", "1 x NVIDIA H200"]
    values = [row.cell("speedup").number for row in table.rows]
    assert np.allclose(values, frames.runs["speedup"].iloc[1:])
    assert {row.cell("method").text() for row in table.rows} == {"speculative (draft_length=4)"}
    assert "1 configurations" in table.notes[0]
