"""The formulas against simulation and against the worked examples of the literature; published aggregates."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from analysis_runs import T_AR, write_run

from specbench.analysis.derive.conditions import groups
from specbench.analysis.derive.derive import comparisons
from specbench.analysis.derive.theory import acceptance_iid, theory
from specbench.analysis.read.frames import load
from specbench.analysis.reports import reference
from specbench.measure import metrics
from specbench.measure.theory.formulas import (
    FORESEEING,
    FREE_RUNNING,
    LOCKSTEP,
    SEQUENTIAL,
    emitted_lockstep,
    emitted_sequential,
    speedup_foreseeing,
    speedup_free_running,
    speedup_lockstep,
    speedup_sequential,
)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.0, 4), (0.3, 1), (0.8, 4), (0.95, 8), (1.0, 5)])
def test_sequential_formula_is_the_expected_count(alpha: float, gamma: int) -> None:
    exact = sum(alpha**k for k in range(gamma + 1))  # P(at least k accepted), and the target's own token
    assert emitted_sequential(alpha, gamma) == pytest.approx(exact)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.5, 3), (0.8, 5), (0.9, 2)])
def test_lockstep_formula_is_what_a_simulation_of_pearl_emits(alpha: float, gamma: int) -> None:
    rng = np.random.default_rng(1)
    emitted, steps, post = 0, 60_000, False
    for _ in range(steps):
        if not post:  # only the first token of the chunk is checked; if it stands, the chunk is taken over
            post = bool(rng.random() < alpha)
            emitted += 1
        else:  # the rest of the last chunk and the first of the new one
            accepted = int(min(rng.geometric(1 - alpha) - 1, gamma))
            post = accepted == gamma
            emitted += gamma if post else accepted + 1
    assert emitted_lockstep(alpha, gamma) == pytest.approx(emitted / steps, rel=0.02)
    assert emitted_lockstep(1.0, gamma) == gamma


def test_worked_examples() -> None:
    """alpha 0.8, t_v = 5 t_d: PEARL 2.28x, best sequential 1.87x at gamma 4; alpha 0.6, t_v = 8 t_d: PEARL loses."""
    assert speedup_lockstep(0.8, 5, 1 / 5) == pytest.approx(2.28, abs=0.005)
    assert max((speedup_sequential(0.8, g, 1 / 5), g) for g in range(1, 12)) == (pytest.approx(1.87, abs=0.005), 4)
    best = max(speedup_sequential(0.6, g, 1 / 8) for g in range(1, 12))
    assert speedup_lockstep(0.6, 8, 1 / 8) == pytest.approx(1.55, abs=0.005)
    assert best == pytest.approx(1.58, abs=0.005)


def test_acceptance_estimate_undoes_the_censoring(tmp_path: Path) -> None:
    """Accepted over drafted falls with the draft's length although every draft is as good as the next."""
    write_run(tmp_path, alpha=0.75, gamma=8, prompts=range(40), mean_tokens=60)
    table = load([tmp_path]).table(0, "method")
    assert acceptance_iid(table) == pytest.approx(0.75, abs=0.02)
    assert metrics.acceptance_rate(table) == pytest.approx(sum(0.75**k for k in range(1, 9)) / 8, abs=0.03)


def test_a_chain_of_drafts_has_no_formula(tmp_path: Path) -> None:
    """Its drafting seconds are several processes', which no formula knows; the twin has two processes, and a row."""
    for number in (2, 3):
        folder = write_run(tmp_path / str(number), free=True)
        facts = json.loads((folder / "run.json").read_text())
        facts["method_facts"] = {"method": {"num_processes": number}, "baseline": {}}
        (folder / "run.json").write_text(json.dumps(facts))
        assert len(theory(load([folder]))) == (number == 2)


def test_theory_of_runs_uses_their_own_times(tmp_path: Path) -> None:
    many = {"prompts": range(30), "alpha": 0.8}
    write_run(tmp_path, "speculative", gamma=4, draft_share=0.2, when=1, **many)
    write_run(tmp_path, "amusd", gamma=3, free=True, draft_share=0.2, when=2, **many)
    write_run(tmp_path, "pearl", gamma=4, free=True, phase="post", when=3, **many)
    write_run(tmp_path, "autoregressive", gamma=0, single=True, when=4)
    write_run(tmp_path, "ssd", gamma=4, free=True, phase="hit", draft_share=0.2, when=5, **many)
    frame = theory(load([tmp_path]))
    assert frame.index.tolist() == [0, 1, 2, 4]  # autoregressive decoding drafts nothing
    assert frame["schedule"].tolist() == [SEQUENTIAL, FREE_RUNNING, LOCKSTEP, FORESEEING]
    ahead, (c, v) = frame.loc[4], frame.loc[4, ["t_draft_ms", "t_verify_ms"]] / frame.loc[4, "t_ar_ms"]
    assert ahead["hits"] == 1.0 and frame.loc[:2, "hits"].isna().all()
    assert ahead["predicted"] == pytest.approx(emitted_sequential(ahead["alpha"], ahead["gamma"]) / max(v, 5 * c))
    assert speedup_foreseeing(0.8, 4, 0.1, 1.0, 0.0) == pytest.approx(speedup_sequential(0.8, 4, 0.1)), "no hit is no gain"
    line = frame.loc[0]
    assert line["t_ar_ms"] == pytest.approx(1e3 * T_AR, rel=0.01)
    assert line["t_draft_ms"] == pytest.approx(0.98 * 0.2 * 1e3 * T_AR, rel=0.01)
    assert line["t_verify_ms"] == pytest.approx(0.98 * 1.1 * 1e3 * T_AR, rel=0.01)
    assert line["speedup_sequential"] == pytest.approx(speedup_sequential(line["alpha"], 4, 0.98 * 0.2, 0.98 * 1.1), rel=0.01)
    assert line["reached"] == pytest.approx(1.0, abs=0.08)  # its rounds are drawn from the formula's own law
    free = frame.loc[1]  # an amusd of which nobody knows how far it ran ahead: all that is known is its draft's speed
    assert free["predicted"] == free["bound_free_running"] == pytest.approx(free["t_ar_ms"] / free["t_draft_ms"])


def test_a_free_running_schedule_is_played_with_the_options_of_its_run(tmp_path: Path) -> None:
    many = {"prompts": range(30), "alpha": 0.8, "free": True, "draft_share": 0.2, "gamma": 3}
    own = {"draft_length": 2, "max_lookahead": 16, "stale": "plain", "stop": None}
    write_run(tmp_path, "amusd", when=1, options=own, **many)
    write_run(tmp_path, "amusd", when=2, options=own | {"max_lookahead": 2}, **many)
    write_run(tmp_path, "amusd", when=3, options=own | {"stale": "wait"}, **many)
    far, near, other = (line for _, line in theory(load([tmp_path])).iterrows())
    assert far["predicted"] == far["speedup_free_running"] and far["reached"] == far["speedup_measured"] / far["predicted"]
    assert near["predicted"] < far["predicted"] < far["bound_free_running"]
    assert other["predicted"] == other["bound_free_running"] and math.isnan(other["speedup_free_running"])
    # Never wrong, it is as fast as its draft; always wrong, every token is a forward of the target's.
    assert speedup_free_running(1.0, 0.25, 1.0, 2, 16) == pytest.approx(4.0, rel=0.01)
    assert speedup_free_running(0.0, 0.25, 1.0, 2, 16) <= 1.0


# ---------------------------------------------------------------------------------------------------- published values
def published() -> dict[tuple[str, str, str], float]:
    frame = reference.load()
    return {(r.method, r.models, r.metric): float(r.value) for r in frame.itertuples() if r.kind == "recomputed"}


@pytest.mark.parametrize(
    ("models", "wrong"), [("Vicuna-v1.3-7B", 2.589), ("Vicuna-v1.3-13B", 2.664), ("Vicuna-v1.3-33B", 2.532)]
)
def test_medusas_aggregates_without_the_off_by_one(models: str, wrong: float) -> None:
    values = published()
    tokens, rounds = (int(values["medusa", models, name]) for name in ("tokens", "rounds"))
    ours = metrics.emitted_per_round(reference.rounds_with(tokens, rounds))["pooled"]
    assert ours == pytest.approx(values["medusa", models, "emitted_per_round"], abs=5e-4)
    answers = 160  # one round too few in each: the usual slip, which this comparison catches
    slip = metrics.emitted_per_round(reference.rounds_with(tokens, rounds - answers))["pooled"]
    assert slip == pytest.approx(wrong, abs=1e-3) and slip != pytest.approx(ours, abs=5e-3)


def test_vllms_counters() -> None:
    values = published()
    drafts, drafted, accepted = (int(values["speculative", "k=7", name]) for name in ("rounds", "drafted", "accepted"))
    assert (drafts, drafted, accepted) == (4816, 33712, 12208)
    table = reference.rounds_with(accepted + drafts, drafts, drafted)
    assert metrics.emitted_per_round(table)["pooled"] == pytest.approx(3.535, abs=5e-4)
    assert metrics.accepted_per_round(table)["pooled"] == pytest.approx(2.535, abs=5e-4)
    assert metrics.acceptance_rate(table) == pytest.approx(0.362, abs=5e-4)


def test_medusa_7b_is_the_published_one() -> None:
    assert metrics.emitted_per_round(reference.rounds_with(43_754, 17_058))["pooled"] == pytest.approx(2.565, abs=5e-4)


def test_every_published_value_has_a_source_and_a_number() -> None:
    frame = reference.load()
    assert (frame["source"] != "").all() and (frame["dataset"] != "").all() and (frame["method"] != "").all()
    assert frame["value"].astype(float).gt(0).all()
    assert set(frame["kind"]) == {"leaderboard", "readme", "recomputed", "paper"}
    assert not frame.duplicated(["source", "published_name", "models", "dataset", "hardware", "metric", "note"]).any()


def test_reproduced_table_agrees_in_every_row() -> None:
    table = reference.reproduced()
    assert len(table) == 5
    for row in table.rows:
        assert row.cell("ours").number == pytest.approx(row.cell("published").number, abs=5e-4)


def test_published_rows_stand_apart(tmp_path: Path) -> None:
    write_run(tmp_path, "amusd", free=True, gamma=3, when=1, source="standin")
    frames = load([tmp_path])
    group = groups(frames)[0]
    table = reference.reference_table(group, comparisons(frames, group))
    ours, theirs = table.rows[0], table.rows[1:]
    assert ours.cell("origin").text() == "measured" and ours.cell("data").text() == "humaneval-standin"
    assert {row.cell("origin").text().split(" [")[0] for row in theirs} == {reference.PUBLISHED}
    assert {row.cell("data").text() for row in theirs} == {"humaneval"}
    assert not any(row.ranked or row.cell("speedup").bold for row in table.rows)
    assert any(row.cell("speedup").number == 1.57 and row.cell("ms_per_token").number == 14.08 for row in theirs)
    assert any("other prompts" in note for note in table.notes)
    assert "speed-ups and times do not" in table.caption
