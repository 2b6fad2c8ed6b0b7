"""The measured cost of rows: what a drifting machine does to it, and that more never costs less."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from specbench.engine.model import Model
from specbench.engine.session import Session
from specbench.engine.tree import EMPTY, DraftTree
from specbench.parts.shapes import cost as row_cost
from specbench.parts.shapes.cost import interleaved_seconds, measure_costs, measure_rounds
from specbench.parts.shapes.static import never_falling


class Drifting:
    """A machine that needs twice as long after some steps: its clock, and steps of a true cost."""

    def __init__(self, slow_after: int):
        self.now, self.done, self.slow_after = 0.0, 0, slow_after

    def step(self, seconds: float) -> Any:
        def run() -> None:
            self.now += seconds * (1 if self.done < self.slow_after else 2)
            self.done += 1

        return run

    def clock(self, _: str) -> Any:
        return SimpleNamespace(
            synchronize=lambda: None, stamp=lambda: self.now, seconds=lambda stamps: [0.0, stamps[1] - stamps[0]]
        )


TRUE = [1.0, 1.1, 1.2, 1.5]


@pytest.mark.parametrize("slow_after", [0, 20, 40, 60, 1000])
def test_drift_falls_on_all_sizes_alike(monkeypatch: pytest.MonkeyPatch, slow_after: int) -> None:
    machine = Drifting(slow_after)
    monkeypatch.setattr(row_cost, "clock_for", machine.clock)
    times = interleaved_seconds([machine.step(seconds) for seconds in TRUE], "cpu")
    assert [seconds / times[0] for seconds in times] == pytest.approx(TRUE, rel=0.02)


def test_timed_one_after_the_other_it_would_not(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Drifting(40)
    monkeypatch.setattr(row_cost, "clock_for", machine.clock)
    times = [interleaved_seconds([machine.step(seconds)], "cpu")[0] for seconds in TRUE]
    assert times[2] / times[0] > 1.5


@given(st.lists(st.floats(0.01, 10.0), max_size=12))
def test_never_falling_is_the_nearest(values: list[float]) -> None:
    found = never_falling(values)
    assert len(found) == len(values) and found == sorted(found)
    assert sum(found) == pytest.approx(sum(values))
    if values == sorted(values):
        assert found == values
    # The projection on the cone of such sequences: what is left stands at right angles to it and points away from all others.
    assert sum((value - kept) * kept for value, kept in zip(values, found, strict=True)) == pytest.approx(0.0, abs=1e-9)
    assert all(sum(found[:end]) <= sum(values[:end]) + 1e-9 for end in range(len(values) + 1))


def test_costs_of_a_model() -> None:
    session = Session(Model.wrap(tiny.module("llama")))
    called = []
    costs, drafts = measure_costs(session, [lambda: called.append(1), lambda: called.append(2)], (8, 1, 4))
    assert list(costs) == [1, 4, 8] and all(a <= b for a, b in zip([0.0, *costs.values()], costs.values(), strict=False))
    assert len(drafts) == 2 and called.count(1) == called.count(2) == 18
    assert session.length == 0


def test_rounds_are_timed_with_their_drafting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every draft is verified as it is drawn and one of its paths kept; what drafting costs is in the round."""
    machine = Drifting(1000)
    monkeypatch.setattr(row_cost, "clock_for", machine.clock)
    session = Session(Model.wrap(tiny.module("llama")))
    fed: list[int] = []
    monkeypatch.setattr(
        Session, "forward", lambda self, tree, real=Session.forward: (fed.append(len(tree.tokens)), real(self, tree))[1]
    )
    kept: list[tuple[int, ...]] = []
    monkeypatch.setattr(
        Session, "commit", lambda self, verdict, real=Session.commit: (kept.append(verdict.path), real(self, verdict))[1]
    )
    trees = [EMPTY, DraftTree([5]), DraftTree([5, 6, 7, 8], [-1, -1, 1, 2])]

    def draft(tree: DraftTree) -> DraftTree:
        machine.step(1.0 + len(tree.tokens))()
        return tree

    seconds = measure_rounds(session, [lambda tree=tree: draft(tree) for tree in trees])
    assert seconds == pytest.approx([1.0, 2.0, 5.0])
    assert sorted(fed) == [0] * 18 + [1] * 18 + [4] * 18 and set(kept) == {(), (0,), (1, 2, 3)}
    assert session.length == 0


def test_a_short_context_leaves_room_for_the_rows() -> None:
    """Positions beyond those that a model has learnt are an error in it: the tokens before the rows are fewer then."""
    short = tiny.config("gpt2")
    short.n_positions = 80
    session = Session(Model.wrap(AutoModelForCausalLM.from_config(short)))
    costs, _ = measure_costs(session, rows=(1, 16, 64))
    assert sorted(costs) == [1, 16, 64]
    assert len(measure_rounds(session, [lambda: EMPTY, lambda: DraftTree(list(range(8)))])) == 2
