"""Two runs side by side: what differs, the ratio of their speed-ups or why there is none, and whether they say the same."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from analysis_runs import provenance, write_run

from specbench.analysis import compare_two, load
from specbench.analysis.__main__ import main
from specbench.analysis.derive.derive import columns_of, restrict
from specbench.analysis.derive.outputs import read_outputs
from specbench.measure.records.store import RunStore, read_run


def said(one: Path, other: Path, **options: bool) -> str:
    return compare_two(one, other, **options)


def unwrapped(text: str) -> str:
    return " ".join(text.partition("\n\n")[0].split())


def line(text: str, label: str) -> list[str]:
    table = text.partition("\n\n")[2]  # the paragraph before it is wrapped, and a line of it may begin as a row does
    (found,) = [row for row in table.splitlines() if row.startswith(label)]
    return re.split(r"\s{2,}", found.strip())


def test_settings_speedups_ratio_and_outputs_of_two_runs(tmp_path: Path) -> None:
    one = write_run(tmp_path, "speculative", prompts=range(8))
    other = write_run(tmp_path, "speculative", gamma=3, alpha=0.8, prompts=range(2, 12), wrong=True, when=9, temperature=0.5)
    text = said(one, other)
    assert line(text, "method.draft_length")[1:] == ["4", "3"] and line(text, "decoding.temperature")[1:] == ["0.0", "0.5"]
    assert "They differ in decoding.temperature, method.draft_length, note." in unwrapped(text)
    assert "_target_" not in text and "measure.repeats" not in text, "what is equal is not said"
    frames = load([one, other])
    common = [f"humaneval/{i}" for i in range(2, 8)]
    pairs = [restrict(frames.pairs[run], [p in common for p in frames.pairs[run].prompts]) for run in (0, 1)]
    totals = [columns_of(p).sum(0) for p in pairs]
    ratio = np.divide(*[(t[0] / t[1]) / (t[2] / t[3]) for t in totals])
    assert f"On the 6 samples that both finished, A's speed-up is {ratio:.2f} times B's (95 % interval" in unwrapped(text)
    low, high = map(float, re.findall(r"over prompts (\d\.\d+) to (\d\.\d+)", unwrapped(text))[0])
    assert low <= ratio <= high and line(text, "speed-up, A over B")[1] == f"{ratio:.2f} [{low:.2f}, {high:.2f}]"
    assert f"the interval {'contains' if low <= 1 <= high else 'excludes'} 1." in unwrapped(text)
    for run, cell in enumerate(line(text, "speed-up [95 %")[1:]):
        row = frames.runs.loc[run]
        assert cell == f"{row['speedup']:.2f} [{row['speedup_low']:.2f}, {row['speedup_high']:.2f}]"
    assert line(text, "output and its baseline's")[1:] == ["identical", "DIFFERENT"]
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(
    ("wrong", "expected"), [(False, "Their outputs are the same, all 16."), (True, "NOT the same: 2 of 16")]
)
def test_outputs_are_compared_id_by_id(tmp_path: Path, wrong: bool, expected: str) -> None:
    text = said(write_run(tmp_path), write_run(tmp_path, "amusd", wrong=wrong, when=5))
    assert expected in unwrapped(text) and line(text, "same output")[1] == ("14/16" if wrong else "16/16")


def test_a_longer_limit_is_no_other_output(tmp_path: Path) -> None:
    """The twin: one of the outputs is another before that."""
    one = write_run(tmp_path, prompts=range(3), repeats=1)
    texts = []
    for wrong in (False, True):
        other = write_run(tmp_path, prompts=range(3), repeats=1, mean_tokens=20, wrong=wrong, when=1 + wrong)
        text = said(one, other)
        texts.append(f"{unwrapped(text)} {line(text, 'same output')[1]}")
    lengths = [len(output.ids) for output in read_outputs(other, "method").values()]
    limits = f"up to the shorter limit of {min(lengths)} to {max(lengths)} tokens"
    assert f"Their outputs are the same {limits}, all 3." in texts[0] and texts[0].endswith("3/3 up to the shorter limit")
    assert f"NOT the same: 1 of 3 differ, the earliest from token {lengths[0] - 1} on; the same " in texts[1]
    assert "are 2." in texts[1] and texts[1].endswith("2/3 up to the shorter limit")


def test_what_their_sweep_left_out_is_no_matter(tmp_path: Path) -> None:
    """The twin: a named run that cannot be used."""
    runs = [write_run(tmp_path, when=when) for when in (0, 1)]
    record = {"started_at": "2026", "left_out": [{"what": "method=rest", "why": "no datastore", "num_jobs": 1}]}
    for place in {run.parent for run in runs}:
        (place / "sweep_1.json").write_text(json.dumps(record))
    assert "A over B" in said(*runs)
    RunStore.open(runs[1]).set_status("failed", error="broke")
    with pytest.raises(ValueError, match=r"status is failed|failed"):
        said(*runs)


def test_one_run_measured_again_is_told_from_noise(tmp_path: Path) -> None:
    one, other = write_run(tmp_path, seed=1), write_run(tmp_path, seed=1, when=7)
    text = unwrapped(said(one, other))
    assert "the interval contains 1." in text and "They differ in note." in text


def test_where_no_ratio_can_be_given_the_reason_is(tmp_path: Path) -> None:
    one = write_run(tmp_path)
    for other, why in (
        (write_run(tmp_path, data="mt_bench", when=1), "not run on the same prompts (name humaneval against mt_bench"),
        (write_run(tmp_path, content="another", when=2), "not run on the same prompts (content humaneval-co against another"),
        (write_run(tmp_path, prompts=range(20, 24), when=3), "no sample was finished by both"),
        (
            write_run(tmp_path, baseline="speculative", baseline_gamma=2, when=4),
            "baselines are not the same (autoregressive against",
        ),
        (write_run(tmp_path, mode="aa", when=5), "B is the baseline against itself"),
        (write_run(tmp_path, "autoregressive", gamma=0, single=True, when=6), "B has no speed-up"),
    ):
        text = said(one, other)
        assert re.search(f"No ratio can be given: (they were |their )?{re.escape(why)}", unwrapped(text)), why
        assert "A over B" not in text


def test_what_nobody_chose_is_said_too(tmp_path: Path) -> None:
    facts = {"provenance": provenance("c1", commit="b" * 40)}
    text = unwrapped(said(write_run(tmp_path), write_run(tmp_path, when=3, run_changes=facts)))
    assert "Beside their settings differs: git.commit aaaaaaaaaaaa... against bbbbbbbbbbbb..." in text


def test_errors_are_one_line_with_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, cut = write_run(tmp_path), write_run(tmp_path, status="interrupted", when=4)
    for arguments, why in (
        ([one, one], "named twice"),
        ([one, tmp_path], "not a run folder (it has no run.json"),
        ([one, tmp_path / "x\n\x1b[31m"], "not a run folder (not there)"),
        ([one, cut], "interrupted"),
    ):
        assert main(["compare", *map(str, arguments)]) == 2
        out, err = capsys.readouterr()
        assert why in err and err.count("\n") == 1 and "\x1b" not in err and not out
    assert main(["compare", str(one), str(cut), "--unfinished"]) == 0
    with pytest.raises(SystemExit):
        main(["compare", str(one)])


def test_a_strangers_texts_are_shown_as_text(tmp_path: Path) -> None:
    one, other = write_run(tmp_path), write_run(tmp_path, when=2)
    run = read_run(other)
    run["config"]["method"]["note"] = "\x1b[31m" + "x" * 100
    RunStore(other, run).write_run({"method": "a\nb\x1b[0m", "config": run["config"]})
    text = said(one, other)
    assert "\x1b" not in text and "\\x1b[31m" in text and json.dumps("x" * 100) not in text
