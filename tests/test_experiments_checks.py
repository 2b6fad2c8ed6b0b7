"""The experiments that check something (rollback_stress, reproducibility, output_consistency) on synthetic runs with known
faults: what is right is found right, and each fault is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from analysis_runs import write_run
from check_runs import LIMIT, METHODS, T_AR, TIMES, WHEN, change, drawn, played, write_scripted
from experiment_runs import planned
from sweeping import execute

from specbench.analysis.derive.conditions import groups
from specbench.analysis.derive.derive import comparisons
from specbench.analysis.derive.outputs import Output, same_prompts
from specbench.analysis.derive.repetitions import label_of, rank
from specbench.analysis.derive.scripted import Scripted, scripted, wilson
from specbench.analysis.read.frames import load
from specbench.analysis.reports import experiments
from specbench.analysis.show.document import Document
from specbench.analysis.show.table import Table
from specbench.measure.theory import formulas

Found = dict[tuple[str, str], tuple[Scripted, float]]
PATTERNS = ("never", "iid:0.3", "always", "every:4", "bursts:6+3", "end:0.25")


def report(folder: Path, name: str) -> tuple[Document, Table]:
    return experiments.find(name).document(load([folder]))


def rows_of(table: Table) -> list[dict[str, Any]]:
    return [{key: cell.value for key, cell in row.cells.items()} for row in table.rows]


def warnings_of(doc: Document) -> str:
    return " ".join(block.text for block in doc.blocks if block.kind == "warning")


# ------------------------------------------------------------------------------------------------ rollback_stress
@pytest.fixture(scope="module")
def stress(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stress")
    for method in METHODS:
        for errors in PATTERNS:
            write_scripted(root, method, errors)
    return root


@pytest.fixture(scope="module")
def runs(stress: Path) -> Found:
    """What was found of every method under every pattern, and its measured speed-up."""
    frames = load([stress])
    made = {}
    for group in groups(frames):
        for comparison in comparisons(frames, group):
            for run in comparison.runs.index:
                one = scripted(comparison, int(run))
                assert one is not None
                made[one.method, one.errors] = one, float(frames.runs.loc[run, "speedup"])
    assert len(made) == len(METHODS) * len(PATTERNS)
    return made


def test_runs_of_different_patterns_stand_in_one_table(stress: Path) -> None:
    doc, table = report(stress, "rollback_stress")
    assert len(table) == len(METHODS) * len(PATTERNS), "none counts as a repetition of another"
    assert "did not" not in warnings_of(doc)
    assert all(row["as_scripted"].split("/")[0] == row["as_scripted"].split("/")[1] for row in rows_of(table))
    assert sum(block.kind == "figure" for block in doc.blocks) == 2


def test_what_the_script_says_is_what_was_played(runs: Found) -> None:
    for (method, errors), (one, _) in runs.items():
        assert one.as_scripted == one.num_rounds
        steps = [s for n in range(6) for s in played(method, errors, f"s/{n}", LIMIT - n % 3)[0]]
        assert one.emitted == pytest.approx(sum(s.emitted for s in steps) / len(steps))
        if method != "amusd":  # its rounds hang on the times, which are known from the records only about
            assert one.emitted_scripted == pytest.approx(one.emitted)
        assert one.gamma == METHODS[method]


def test_ends_are_exact_and_a_rate_is_met(runs: Found) -> None:
    for (_, errors), (one, _) in runs.items():
        if errors in ("never", "always"):
            assert one.acceptance.value == one.set_acceptance == (errors == "never")
        if errors == "iid:0.3":
            low, high = one.acceptance.low, one.acceptance.high
            assert low is not None and high is not None and low <= 0.7 <= high
    assert runs["speculative", "every:4"][0].set_acceptance == pytest.approx(0.766, abs=0.01)


def test_closed_forms_are_for_independent_errors_alone(runs: Found) -> None:
    assert runs["speculative", "every:4"][0].closed_speedup is None and runs["pearl", "end:0.25"][0].closed_emitted is None
    one = runs["speculative", "iid:0.3"][0]
    assert one.closed_emitted == pytest.approx(formulas.emitted_sequential(0.7, 4))
    assert one.times is not None and one.ar_seconds == pytest.approx(T_AR)
    assert one.times.draft == pytest.approx(TIMES.draft, rel=0.1) and one.times.target(5) == pytest.approx(
        TIMES.target(5), rel=0.02
    )
    assert runs["pearl", "never"][0].closed_emitted == 4
    amusd = runs["amusd", "iid:0.3"][0]
    assert amusd.closed_emitted is None and amusd.times is not None
    assert amusd.closed_speedup == pytest.approx(T_AR / amusd.times.draft)


def test_a_played_script_is_as_fast_as_the_run(runs: Found) -> None:
    """The synthetic runs take exactly the time of their schedule: reached is 1."""
    for (method, _), (one, speedup) in runs.items():
        if method == "speculative":
            assert speedup == pytest.approx(one.speedup_scripted, rel=0.05)


def test_a_method_that_does_not_follow_the_script_is_named(tmp_path: Path) -> None:
    write_scripted(tmp_path, "speculative", "every:4", does="every:5")
    write_scripted(tmp_path, "speculative", "never")
    doc, table = report(tmp_path, "rollback_stress")
    by_errors = {row["errors"]: row["as_scripted"].split("/") for row in rows_of(table)}
    assert by_errors["never"][0] == by_errors["never"][1] and int(by_errors["every:4"][0]) < int(by_errors["every:4"][1])
    assert "speculative with every:4" in warnings_of(doc) and "never:" not in warnings_of(doc)


def test_real_drafts_carry_no_stress(tmp_path: Path) -> None:
    write_run(tmp_path)
    with pytest.raises(ValueError, match="draft_errors"):
        report(tmp_path, "rollback_stress")


def test_wilson() -> None:
    low, high = wilson(50, 100)
    assert low == pytest.approx(0.4038, abs=1e-3) and high == pytest.approx(0.5962, abs=1e-3)
    low, high = wilson(10, 10)
    assert high == pytest.approx(1.0) and low == pytest.approx(0.7225, abs=1e-3)
    assert wilson(0, 0) == (None, None)


# ------------------------------------------------------------------------------------------------ reproducibility
def configured(root: Path, method: str = "speculative", *, sample: Any = None, dtype: str = "float32", **settings: Any) -> Path:
    """A run under a configuration: engine.threads, measure.seed, ..."""
    options: dict[str, Any] = {"free": method == "amusd"}
    folder = write_run(root, method, when=next(WHEN), **options)

    def apply(run: dict[str, Any]) -> None:
        for name, value in settings.items():
            section, _, option = name.partition("__")
            run["config"][section][option] = value
        run["pair"]["target"]["dtype"] = dtype

    return change(folder, apply, sample or (lambda row: None))


def test_equal_runs_are_found_equal(tmp_path: Path) -> None:
    for method in ("speculative", "amusd"):
        configured(tmp_path, method, engine__threads=1)
        configured(tmp_path, method, engine__threads=2)
        configured(tmp_path, method, engine__threads=1, measure__seed=1)
    doc, table = report(tmp_path, "reproducibility")
    rows = rows_of(table)
    assert [row["method"] for row in rows] == ["autoregressive"] * 3 + ["speculative"] * 3 + ["amusd"] * 3
    assert [row["configuration"] for row in rows[:3]] == [
        "1 thread, order 0 (reference)",
        "order 1",
        "2 threads",
    ]
    # The later repeat against the first (and another run's two), then both repeats of eight prompts.
    assert [row["same_output"] for row in rows] == ["24/24", "32/32", "32/32", *(["8/8", "16/16", "16/16"] * 2)]
    assert all("left out" not in block.text.lower() for block in doc.blocks), "an order is no repetition"


def test_one_changed_token_is_found(tmp_path: Path) -> None:
    """In the one output of one run, and nowhere else."""

    def corrupt(row: dict[str, Any]) -> None:
        if (row["sample_id"], row["repeat"], row["arm"]) == ("humaneval/3", 1, "method"):
            row["output_ids"][5] += 1

    configured(tmp_path, engine__threads=1)
    configured(tmp_path, engine__threads=2, sample=corrupt)
    doc, table = report(tmp_path, "reproducibility")
    rows = rows_of(table)
    assert [row["same_output"] for row in rows] == ["8/8", "16/16", "8/8", "15/16"]
    assert rows[3]["first_divergence"] == 5 and rows[2]["first_divergence"] is None
    assert "1 of 16 outputs differ from the reference's, first at token 5" in " ".join(b.text for b in doc.blocks)


def test_other_rounds_are_told_from_other_text(tmp_path: Path) -> None:
    configured(tmp_path, engine__threads=1)
    folder = write_run(tmp_path, "speculative", when=next(WHEN), seed=9)  # the same text in other rounds
    change(folder, lambda run: run["config"]["engine"].update(threads=2))
    _, table = report(tmp_path, "reproducibility")
    last = rows_of(table)[-1]
    same, compared = map(int, last["same_rounds"].split("/"))
    assert last["same_output"] == "16/16" and same < compared == 16


def test_the_reference_is_the_finest(tmp_path: Path) -> None:
    configured(tmp_path, dtype="bfloat16", engine__threads=1)
    configured(tmp_path, engine__threads=2)
    configured(tmp_path, engine__threads=1)
    rows = rows_of(report(tmp_path, "reproducibility")[1])
    assert rows[0]["configuration"].startswith("float32") and "1 thread" in rows[0]["configuration"]
    base = {"device": "cpu", "format": "float32", "draft format": "float32", "attention": "sdpa", "threads": "1", "order": "0",
            "seed": "0", "machine": "m", "code": "c"}  # fmt: skip
    for worse in ({"device": "cuda:0"}, {"format": "bfloat16"}, {"attention": "eager"}, {"threads": "chosen"}, {"order": "1"}):
        assert rank(base) < rank(base | worse)
    assert (
        label_of(base | {"draft format": "bfloat16"}, ["format", "draft format", "threads"])
        == "target float32, draft bfloat16, 1 thread"
    )


def test_other_work_is_not_compared(tmp_path: Path) -> None:
    configured(tmp_path, engine__threads=1)
    configured(tmp_path, engine__threads=2, decoding__max_new_tokens=64)
    with pytest.raises(ValueError, match="two configurations"):
        report(tmp_path, "reproducibility")


def test_a_prompt_that_differs_is_counted_apart(tmp_path: Path) -> None:
    configured(tmp_path, engine__threads=1)
    configured(
        tmp_path, engine__threads=2, sample=lambda row: row["sample_id"] == "humaneval/0" and row["prompt_ids"].append(4)
    )
    _, table = report(tmp_path, "reproducibility")
    assert rows_of(table)[-1]["same_output"] == "14/14" and "prompts differ" in table.notes[0]


# ------------------------------------------------------------------------------------------------ output_consistency
def sampled(
    root: Path, method: str = "speculative", seed: int = 0, sample: Any = None, verdict: str | None = None, **more: Any
) -> Path:
    options: dict[str, Any] = {
        "temperature": 0.7,
        "claim": "sampling-exact",
        "prompts": tuple(range(20)),
        "mean_tokens": 60,
        **more,
    }
    folder = write_run(root, method, when=next(WHEN), **options)
    return change(folder, lambda run: run["config"]["decoding"].update(seed=seed), sample or drawn(seed, None), verdict)


def chained(*steps: Any) -> Any:
    return lambda row: [step(row) for step in steps]


def consistency(root: Path) -> tuple[Document, dict[str, dict[str, Any]]]:
    doc, table = report(root, "output_consistency")
    return doc, {f"{row['law']} {row['label']}": row for row in rows_of(table)}


def test_same_ids_same_law_and_the_yardstick(tmp_path: Path) -> None:
    write_run(tmp_path, "speculative", when=next(WHEN))
    sampled(tmp_path)
    own_draws = chained(drawn(0, "baseline"), drawn(77, "method"))
    sampled(tmp_path, options={"rule": "ratio"}, sample=own_draws, verdict="not_compared")
    sampled(tmp_path, "autoregressive", seed=1, single=True, gamma=0, sample=drawn(1, None))
    doc, rows = consistency(tmp_path)
    assert rows["greedy speculative"]["wanted"] == "same ids"
    same = rows["T=0.7 speculative"]
    assert same["identical"] == "40/40" and same["tv_tokens"] == 0 and same["tv_tokens_p"] == 1
    ratio = rows["T=0.7 speculative (rule=ratio)"]
    assert ratio["wanted"] == "same law" and ratio["identical"] == "0/40" and ratio["first_divergence"] < 5
    assert ratio["tv_bigrams"] > 0 and ratio["tv_bigrams_p"] > 0.01
    yardstick = rows["T=0.7 autoregressive, seed 1 against seed 0"]
    assert yardstick["wanted"] == "nothing" and yardstick["tv_tokens_p"] > 0.01
    assert not [b for b in doc.blocks if b.kind == "warning" and "T=0.7" in b.text]
    assert sum(block.kind == "figure" for block in doc.blocks) == 1


def test_texts_are_compared_in_one_order_in_every_process() -> None:
    """Chance exchanges them one by one: in the order of a set, a report's p-values changed from one call to the next."""
    texts = {(f"s/{number:02}", 0, 0): Output((1,), (number,)) for number in range(40)}
    assert [ours.ids for ours, _ in same_prompts(texts, texts)] == [(number,) for number in range(40)]


def test_another_law_is_named(tmp_path: Path) -> None:
    """Ids may differ under rule=ratio, and the law may not."""
    other = chained(drawn(0, "baseline"), drawn(77, "method", tilt=0.3))
    sampled(tmp_path, options={"rule": "ratio"}, sample=other, verdict="not_compared")
    doc, rows = consistency(tmp_path)
    row = next(iter(rows.values()))
    assert row["tv_tokens"] > row["tv_tokens_chance"] and row["tv_tokens_p"] < 0.01
    assert "further from the baseline's than chance" in warnings_of(doc)


def test_one_other_output_is_named(tmp_path: Path) -> None:
    write_run(tmp_path, "amusd", free=True, when=next(WHEN), wrong=True)
    write_run(tmp_path, "speculative", when=next(WHEN))
    doc, rows = consistency(tmp_path)
    assert rows["greedy amusd"]["identical"] == "14/16" and rows["greedy speculative"]["identical"] == "16/16"
    assert "amusd" in warnings_of(doc) and "2 of 16 outputs differ" in warnings_of(doc)


def test_a_method_alone_has_nothing_to_be_compared_with(tmp_path: Path) -> None:
    write_run(tmp_path, "autoregressive", single=True, gamma=0)
    with pytest.raises(ValueError, match="two texts"):
        report(tmp_path, "output_consistency")


# ------------------------------------------------------------------------------------------------ what is run
@pytest.mark.parametrize(("name", "num_jobs"), [("rollback_stress", 18), ("reproducibility", 12), ("output_consistency", 12)])
def test_jobs(name: str, num_jobs: int) -> None:
    """That they compose is proven with the other experiments', in test_experiment_reports."""
    assert len(set(planned(name))) == num_jobs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "num_jobs"),
    [
        ("rollback_stress", ["pair.draft_errors=every:3"], 1),  # the jobs differ in the method alone
        ("reproducibility", ["engine.attention=sdpa", "pair.draft_dtype=float32", "pair.target_dtype=float32"], 2),
        ("output_consistency", ["data=humaneval", "decoding.temperature=0.7"], 3),
    ],
)
def test_an_experiment_ends_in_its_report(tmp_path: Path, name: str, options: list[str], num_jobs: int) -> None:
    """Real runs, one method, by one command."""
    done = execute(tmp_path / "runs", f"experiment={name}", "method=speculative", "launcher=serial", *options)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["num_jobs"] == num_jobs and document["status"] == "success"
    folder = tmp_path / "runs" / "sweeps" / name / "report"
    assert (folder / "report.html").is_file() and (folder / "tables" / f"{name}.csv").is_file()
