"""What each experiment runs and what it makes of it: AMUSD's paper, rollbacks, ratio and energy, on synthetic runs."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import experiment_runs
import numpy as np
import pytest
from analysis_runs import write_run
from sweeping import execute
from test_analysis_figures import overlaps
from test_energy import DRAFT, TARGET, Runner, with_nvml  # noqa: F401

from specbench.analysis.derive.conditions import groups
from specbench.analysis.derive.derive import Estimate, comparisons
from specbench.analysis.derive.rollback_counts import follows_rollback, rollbacks_of, sums_by_prompt
from specbench.analysis.read.frames import load
from specbench.analysis.reports import experiments
from specbench.analysis.reports.experiments import amusd_energy, amusd_paper, amusd_ratio
from specbench.analysis.show.document import Document
from specbench.analysis.show.table import Table
from specbench.measure import metrics
from specbench.measure.metrics import RoundTable
from specbench.measure.pairing import pair_samples
from specbench.measure.records.store import read_samples

PAPER_DATA = experiment_runs.PAPER_DATA
STANDIN: dict[str, Any] = {"measured": True, "source": "standin"}
WRITERS: dict[str, Callable[..., Path]] = {
    "amusd_paper": experiment_runs.paper,
    "amusd_rollback": experiment_runs.rollback,
    "amusd_ratio": experiment_runs.ratio,
    "amusd_energy": experiment_runs.energy,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Document, Table]]:
    """The document and main table of an experiment on synthetic runs, each made once."""
    found: dict[str, tuple[Document, Table]] = {}

    def make(name: str, **options: Any) -> tuple[Document, Table]:
        key = f"{name} {options}"
        if key not in found:
            folder = WRITERS[name](tmp_path_factory.mktemp("runs"), **options)
            found[key] = experiments.find(name).document(load([folder]))
        return found[key]

    return make


def table_named(doc: Document, name: str) -> Table:
    return next(block.table for block in doc.blocks if block.table is not None and block.table.name == name)


def row_of(table: Table, **wanted: str) -> Any:
    (row,) = [row for row in table.rows if all(row.cell(key).text() == value for key, value in wanted.items())]
    return row


# ------------------------------------------------------------------------------------------------ what is run
def jobs(name: str) -> list[str]:
    """The options of every job, each job once."""
    found = [" ".join(sorted(job)).replace("\\:", ":") for job in experiment_runs.planned(name)]
    assert len(set(found)) == len(found), "no job is asked for twice"
    return sorted(found)


def on(data: Sequence[str], *lines: str) -> list[str]:
    """These options on each of these data sets."""
    return sorted(" ".join(sorted([f"data={name}", *line.split()])) for name in data for line in lines)


def test_jobs_of_amusd_paper() -> None:
    equal, over = "method=speculative method.draft_length=5", "method=amusd method@baseline=speculative baseline.draft_length=5"
    unread = [f"{line} measure.power=off" for line in (equal, over, f"{over} baseline.compat=amusd")]
    read = [f"{equal} method.compat=amusd measure.power=", "method=amusd measure.power="]  # on the data of the paper's figure 5
    *others, last = PAPER_DATA
    expected = on(PAPER_DATA, *unread) + on(others, *(f"{line}off" for line in read)) + on([last], *(f"{r}auto" for r in read))
    assert jobs("amusd_paper") == sorted(expected) and last == "refactorchat"


def test_jobs_of_amusd_rollback() -> None:
    everywhere = on((*PAPER_DATA, "specbench"), "method=amusd", "method=amusd method.stale=wait", "method=speculative")
    sampled = on(("humaneval", "mt_bench"), "method=amusd decoding.temperature=1")
    assert jobs("amusd_rollback") == sorted(everywhere + sampled)
    assert {c.method["stale"] for c in experiment_runs.composed("amusd_rollback") if c.method_name == "amusd"} == {
        "plain",
        "wait",
    }


def test_jobs_of_amusd_ratio() -> None:
    targets, drafts = ("target", "target_half"), ("draft_small", "draft", "draft_large")
    sizes = [f"method=amusd pair.target=builtin:{target} pair.draft=builtin:{draft}" for target in targets for draft in drafts]
    floor = "method=autoregressive measure.mode=aa measure.power=off pair.target=builtin:target"
    assert jobs("amusd_ratio") == sorted(on(PAPER_DATA, *sizes) + on(["humaneval"], floor))


def test_jobs_of_amusd_energy() -> None:
    assert jobs("amusd_energy") == on(PAPER_DATA, "method=amusd method@baseline=speculative", "method=speculative")


@pytest.mark.parametrize(
    ("name", "tokens", "power"),
    [("amusd_paper", 64, {"auto", "off"}), ("amusd_rollback", 64, {"off"}), ("amusd_ratio", 48, {"auto", "off"}),
     ("amusd_energy", 64, {"auto"}), ("rollback_stress", 64, {"off"}), ("reproducibility", 64, {"off"}),
     ("output_consistency", 96, {"off"})],
)  # fmt: skip
def test_jobs_compose(name: str, tokens: int, power: set[str]) -> None:
    configs = experiment_runs.composed(name)
    assert {config.measure.power for config in configs} == power
    assert {(config.data.source, config.decoding.max_new_tokens) for config in configs} == {("auto", tokens)}
    assert {config.measure.repeats for config in configs} == {2 if name == "reproducibility" else 1}


# ------------------------------------------------------------------------------------------------ every report
CASES = [
    *((name, {}) for name in WRITERS),
    ("amusd_paper", {"measured": True, "source": "standin"}),
    ("amusd_energy", {"measured": False}),
]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_report_is_whole(made: Callable[..., tuple[Document, Table]], name: str, options: dict[str, Any]) -> None:
    doc, table = made(name, **options)
    tables = [block.table for block in doc.blocks if block.table]
    figures = [block.figure for block in doc.blocks if block.figure]
    names = [item.name for item in (*tables, *figures)]
    assert len(names) == len(set(names)), "one file each"
    assert table.name == name and len(table) and figures
    assert len(list(csv.DictReader(io.StringIO(table.to_csv())))) == len(table.rows)
    assert all("n = 8 prompts x 2 repeats" in t.caption for t in tables if t.name.startswith(name))
    assert all(overlaps(figure) == [] and len(figure.data) and figure.caption for figure in figures)


@pytest.mark.parametrize("name", WRITERS)
def test_runs_that_cannot_carry_it_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    write_run(tmp_path, "autoregressive", gamma=0, single=True)
    with pytest.raises(ValueError, match=r"^no .*") as error:
        experiments.report(name, [tmp_path], tmp_path / "out")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", WRITERS)
def test_a_part_of_the_jobs_makes_a_smaller_report(name: str, tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "amusd", gamma=3, free=True, prompts=[3], repeats=1, mean_tokens=6)
    page, text = experiments.report(name, [tmp_path / "runs"], tmp_path / "out")
    assert "amusd" in page.read_text() and max(map(len, text.splitlines())) <= 120
    saved = {path.stem for path in (page.parent / "figures").glob("*.pdf")}
    assert page.read_text().count("<img") == len(saved) and (page.parent / "tables" / f"{name}.csv").is_file()


@pytest.mark.parametrize("name", WRITERS)
def test_states_of_the_code_are_not_mixed(name: str, tmp_path: Path) -> None:
    one = WRITERS[name](tmp_path / "runs", prompts=range(3))
    other = experiment_runs.under_other_conditions(one, tmp_path / "other")
    study = experiments.find(name)
    chapters = [chapter for chapter in study.chapters(load([one, other])) if chapter.cases]
    assert [{group.conditions["conditions_hash"] for group in chapter.groups} for chapter in chapters] == [{"c0"}, {"c1"}]
    ours, theirs = (study.table(chapter).to_csv() for chapter in chapters)
    assert ours == theirs and ours.count("\n") > 2, "a table for each state, of its own runs alone"


def test_a_report_of_two_states_says_so_and_has_one_file_for_each(tmp_path: Path) -> None:
    one = experiment_runs.paper(tmp_path / "runs", prompts=range(3), measured=True)
    frames = load([one, experiment_runs.under_other_conditions(one, tmp_path / "other")])
    doc, table = experiments.find("amusd_paper").document(frames)
    assert any(block.kind == "warning" and "changed between the runs" in block.text for block in doc.blocks)
    items = [item for block in doc.blocks for item in (block.table, block.figure) if item is not None]
    assert len({item.name for item in items}) == len(items)
    assert table_named(doc, "amusd_paper") is table and len(table_named(doc, "amusd_paper_2")) == len(table)


# ------------------------------------------------------------------------------------------------ amusd_paper
def test_both_boundaries_stand_beside_the_published_ones(made: Callable[..., tuple[Document, Table]]) -> None:
    _, table = made("amusd_paper")
    assert [row.cell("method").text() for row in table.rows] == ["autoregressive", "speculative", "amusd"] * 3
    amusd = row_of(table, data="humaneval", method="amusd")
    assert amusd.cell("published_ms_per_token").number == 14.08 and amusd.cell("published_speedup").number == 1.57
    assert amusd.cell("published_over_speculative").number == pytest.approx(17.88 / 14.08)
    assert row_of(table, data="mt_bench", method="autoregressive").cell("published_ms_per_token").number == 21.89
    for key in ("speedup", "over_speculative", "paper_speedup", "paper_over_speculative"):
        assert amusd.cell(key).low < amusd.cell(key).number < amusd.cell(key).high
    assert not any(row.ranked for row in table.rows), "nothing is ranked beside published figures"


def test_the_papers_boundaries_are_counted_as_the_paper_does(tmp_path: Path) -> None:
    """By hand from the records: autoregressive and AMUSD with prefill, speculative without, all over all output tokens."""
    folder = write_run(tmp_path, gamma=5, repeats=1)
    samples = read_samples(folder)
    pairs = pair_samples(samples)
    totals = {
        arm: (
            sum(len(s.output_ids) for s in samples if s.arm == arm),
            sum((s.decode_seconds or 0) + with_prefill * (s.prefill_seconds or 0) for s in samples if s.arm == arm),
        )
        for arm, with_prefill in (("method", 0), ("baseline", 1))
    }
    by_hand = (totals["method"][0] / totals["method"][1]) / (totals["baseline"][0] / totals["baseline"][1])
    assert amusd_paper.paper_speedup(pairs, False, True).value == pytest.approx(by_hand)
    # The twin: with equal boundaries the number is another one, so a mixed-up flag would show.
    assert amusd_paper.paper_speedup(pairs, True, True).value != pytest.approx(by_hand, rel=1e-3)
    assert amusd_paper.paper_speedup(pairs, False, False).value != pytest.approx(by_hand, rel=1e-3)


def test_over_speculative_is_the_paired_run(tmp_path: Path) -> None:
    frames = load([experiment_runs.paper(tmp_path, prompts=range(3))])
    (chapter,) = amusd_paper.STUDY.chapters(frames)
    table = amusd_paper.table_of(chapter)
    runs = frames.runs[(frames.runs["method"] == "amusd") & (frames.runs["baseline"] == "speculative")]
    equal = [r for r, _ in runs.iterrows() if not frames.facts[r]["config"]["baseline"].get("compat")]
    for run in equal:
        row = row_of(table, data=frames.runs.loc[run, "data"], method="amusd")
        assert row.cell("over_speculative").number == pytest.approx(frames.runs.loc[run, "speedup"])


def test_the_power_figure_or_why_there_is_none(made: Callable[..., tuple[Document, Table]]) -> None:
    doc, _ = made("amusd_paper")
    assert not [b for b in doc.blocks if b.figure is not None and b.figure.name == "power_over_time"]
    assert any("no run holds a power trace. Reason recorded by the runs: no accelerator" in b.text for b in doc.blocks)
    assert all(row.cell("origin").text() != "measured" for row in table_named(doc, "amusd_power").rows)
    doc, _ = made("amusd_paper", **STANDIN)
    assert [b for b in doc.blocks if b.figure is not None and b.figure.name == "power_over_time"]
    power = table_named(doc, "amusd_power")
    ours = [row for row in power.rows if row.cell("origin").text() == "measured" and row.cell("method").text() == "amusd"]
    assert ours[0].cell("watts_target").number == pytest.approx(0.6 * 4000 / 20)
    published = row_of(power, origin="published, other hardware", method="amusd")
    assert (published.cell("watts_target").number, published.cell("joules_per_token").number) == (186.2, 4.68)


# ------------------------------------------------------------------------------------------------ amusd_rollback
def test_rollbacks_are_counted_as_the_metrics_count_them(tmp_path: Path) -> None:
    write_run(tmp_path, "amusd", gamma=5, free=True, repeats=2)
    frames = load([tmp_path])
    (comparison,) = comparisons(frames, groups(frames)[0])
    counts, table = rollbacks_of(comparison, 0, resamples=200), comparison.rounds(0)
    tokens, thrown = int(table.num_emitted.sum()), int(table.num_discarded.sum())
    assert counts.per_100_tokens is not None and counts.depth is not None and counts.discarded_per_100 is not None
    assert counts.per_100_tokens.value == pytest.approx(100 * metrics.rollbacks(table) / tokens)
    assert counts.depth.value == pytest.approx(thrown / metrics.rollbacks(table))
    assert counts.discarded_per_100.value == pytest.approx(100 * thrown / tokens)
    assert counts.depth.low is not None and counts.depth.low <= counts.depth.value <= counts.depth.high
    own = frames.samples[frames.samples["arm"] == "method"]
    thrown_ms = 1e3 * own["concurrent_discarded_draft"].sum() / tokens
    assert counts.thrown_ms_per_token is not None and counts.thrown_ms_per_token.value == pytest.approx(thrown_ms)


def rounds_of(*rounds: tuple[int, int, float]) -> RoundTable:
    """From (sample, discarded, wait)."""
    sample, discarded, wait = (np.array(column) for column in zip(*rounds, strict=True))
    keys = tuple((f"s{i}", 0, 0, "method") for i in range(int(sample.max()) + 1))
    return RoundTable(keys, sample.astype(np.int64), {"num_discarded": discarded, "wait_seconds": wait})


def test_a_wait_belongs_to_the_rollback_before_it_and_to_no_other_sample() -> None:
    table = rounds_of((0, 3, 0.0), (0, 0, 0.5), (0, 2, 0.1), (1, 0, 0.9), (1, 0, 0.1))
    after, eligible = follows_rollback(table)
    assert after.tolist() == [False, True, False, False, False], "a sample's first round follows nothing"
    assert eligible.tolist() == [False, True, True, False, True]


def test_drafting_thrown_away_on_the_targets_path_is_charged(tmp_path: Path) -> None:
    """A sequential method has no other process: its own drafting counts, by the share that was thrown away."""
    write_run(tmp_path, gamma=4, repeats=1)
    frames = load([tmp_path])
    (comparison,) = comparisons(frames, groups(frames)[0])
    table = comparison.rounds(0)
    by_hand = float((table.draft_seconds * table.num_discarded / np.maximum(table.num_drafted, 1)).sum())
    assert sums_by_prompt(comparison, 0)["thrown_seconds"].sum() == pytest.approx(by_hand) and by_hand > 0


def test_output_identity_stands_beside_the_rollbacks(tmp_path: Path) -> None:
    write_run(tmp_path, "amusd", gamma=5, free=True)
    write_run(tmp_path, "amusd", data="mt_bench", gamma=5, free=True, wrong=True, when=1)
    _, table = experiments.find("amusd_rollback").document(load([tmp_path]))
    assert row_of(table, data="humaneval").cell("lossless").text() == "identical (16/16)"
    bad = row_of(table, data="mt_bench")
    assert bad.cell("lossless").text() == "DIFFERENT" and "not ranked" in bad.cell("method").text()


def test_sampled_rows_stand_apart_from_greedy_ones(made: Callable[..., tuple[Document, Table]]) -> None:
    _, table = made("amusd_rollback")
    labels = [row.cell("method").text() for row in table.rows if row.cell("data").text() == "humaneval"]
    assert labels == ["speculative", "amusd", "amusd (stale=wait)", "amusd, T=1"]


# ------------------------------------------------------------------------------------------------ amusd_ratio
def points(folder: Path) -> list[amusd_ratio.Point]:
    frames = load([folder])
    return amusd_ratio.cases_of(frames, groups(frames)[:1])


def best_of(found: list[amusd_ratio.Point]) -> amusd_ratio.Point:
    (best,) = [point for point in found if point.said]
    return best


def test_the_best_ratio_is_named_with_what_is_not_told_from_it(tmp_path: Path) -> None:
    for i, (draft, alpha) in enumerate((("a", 0.9), ("b", 0.9), ("c", 0.3))):
        write_run(tmp_path, "amusd", gamma=3, free=True, draft=draft, alpha=alpha, seed=i, when=i, pair_name="p")
    found = points(tmp_path)
    against = sorted((point.against for point in found), key=lambda text: text[0])
    assert against[0] == "best" and against[1].startswith("less (") and against[2] == "not told apart"
    said = best_of(found).said
    assert "Not distinguishable from it" in said and "c : target" not in said and "in parameters" in said


def test_a_best_that_is_no_gain_is_not_called_one(tmp_path: Path) -> None:
    write_run(tmp_path, "amusd", gamma=1, alpha=0.05, draft_share=0.01, free=False, prompts=range(4), repeats=1)
    (point,) = points(tmp_path)
    assert point.gain.value < 1.05
    said = best_of(amusd_ratio.judged([replace(point, gain=Estimate(1.01, 0.97, 1.05))])).said
    assert "not told from 1" in said and "no other ratio" in said


def test_what_is_not_ranked_is_never_the_best(tmp_path: Path) -> None:
    write_run(tmp_path, "amusd", gamma=3, free=True, draft="a", alpha=0.95, wrong=True, pair_name="p")
    write_run(tmp_path, "amusd", gamma=3, free=True, draft="b", alpha=0.4, when=1, pair_name="p")
    found = points(tmp_path)
    assert best_of(found).draft == "b" and "b : target" in best_of(found).said
    fastest = max(found, key=lambda p: p.gain.value)
    assert fastest.draft == "a" and fastest.against == "not ranked"


# ------------------------------------------------------------------------------------------------ amusd_energy
def test_nothing_measured_is_missing_and_never_zero(made: Callable[..., tuple[Document, Table]]) -> None:
    doc, table = made("amusd_energy", measured=False)
    for row in table.rows:
        assert all(row.cell(key).value is None for key in ("joules_per_token", *amusd_energy.LABELS, "saving_percent"))
        assert row.cell("why").text() == "no accelerator, and no powercap counters"
    assert any(b.kind == "warning" and "missing, not zero" in b.text for b in doc.blocks)
    figure = next(b.figure for b in doc.blocks if b.figure is not None)
    assert figure.name == "device_time_by_part" and figure.caption.startswith("Not energy")


def test_the_split_of_time_sums_to_each_devices_time(tmp_path: Path) -> None:
    experiment_runs.energy(tmp_path, measured=False)
    frames = load([tmp_path])
    lines = [arm for chapter in amusd_energy.STUDY.chapters(frames) for arm in chapter.cases]
    assert {line.label for line in lines} == {"autoregressive", "speculative", "amusd"}
    for line in lines:
        roles = {key.partition(" ")[0] for key in line.seconds}
        assert roles == ({"target", "draft"} if line.label == "amusd" else {"target"})
        whole = {role: sum(v for k, v in line.seconds.items() if k.startswith(role)) for role in roles}
        assert len({round(value, 9) for value in whole.values()}) == 1, "both devices were there equally long"
    amusd = next(line for line in lines if line.label == "amusd")
    assert amusd.seconds["draft discarded_draft"] > 0


def test_joules_read_from_a_device_stand_in_the_table(with_nvml: Runner, tmp_path: Path) -> None:  # noqa: F811
    """The real bindings on the stand-in library: two devices, ABBA blocks, attribution, and from there into the table."""
    entry = with_nvml(
        f"""
        meter = meter_for({{"{TARGET}": "target", "{DRAFT}": "draft"}})
        def run_block(arm, seconds):
            clock.run(seconds, meter)
            worker = {{"draft": 6.0, "discarded_draft": 2.0}}
            if arm == "baseline":
                return energy_pass.Work(600, {{"target": {{"verify": 5.0, "prefill": 1.0}}, "draft": {{"draft": 3.0}}}})
            return energy_pass.Work(1000, {{"target": {{"verify": 7.0, "prefill": 1.0}}, "draft": worker}})
        blocks = energy_pass.abba_pass(run_block, meter)
        out(attribution.summarise(blocks, {{"{TARGET}": 80.0, "{DRAFT}": 40.0}}))
        """
    )
    experiment_runs.energy(tmp_path / "runs", entry=entry)
    doc, table = experiments.find("amusd_energy").document(load([tmp_path / "runs"]))
    amusd, speculative = (row_of(table, data="humaneval", method=name) for name in ("amusd", "speculative"))
    for row in (amusd, speculative):
        assert row.cell("source").text().startswith("nvml_") and row.cell("why").value is None
        assert sum(row.cell(part).number for part in amusd_energy.LABELS) == pytest.approx(row.cell("joules_per_token").number)
    assert amusd.cell("joules_per_token").number == pytest.approx(2.5)
    assert amusd.cell("discarded_draft").number > 0 == speculative.cell("discarded_draft").number
    saving = 100 * (1 - amusd.cell("joules_per_token").number / speculative.cell("joules_per_token").number)
    assert amusd.cell("saving_percent").number == pytest.approx(saving)
    assert next(b.figure for b in doc.blocks if b.figure is not None).name == "energy_by_part"
    assert any("idle power" in note for note in table.notes), "the rule is told"


# ------------------------------------------------------------------------------------------------ a real one
@pytest.mark.slow
def test_an_experiment_end_to_end(tmp_path: Path) -> None:
    done = execute(tmp_path / "runs", "experiment=amusd_rollback", "data=humaneval", "data.source=standin")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["num_jobs"] == 4 and "Rollbacks: frequency, depth, cost" in done.stderr
    page = Path(document["report"])
    assert page.is_file() and (page.parent / "tables" / "amusd_rollback.csv").is_file()
    again = [sys.executable, "-m", "specbench.analysis", document["sweep_folder"], "--experiment", "amusd_rollback"]
    told = subprocess.run([*again, "--out", str(tmp_path / "again")], capture_output=True, text=True, timeout=300, check=True)
    assert "humaneval-standin" in told.stdout
    ours, theirs = (folder / "tables" / "amusd_rollback.csv" for folder in (page.parent, tmp_path / "again"))
    assert ours.read_text() == theirs.read_text(), "the same runs make the same table"
