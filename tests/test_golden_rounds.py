"""Every method still makes the rounds that it made when they were recorded (see golden_rounds.py)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import golden_rounds
import pytest
from golden_rounds import GOLDEN, VARIANTS, rounds_of

from specbench.check import GREEDY, SAMPLED, Bench
from specbench.check.tiny import PROMPTS, make_tiny_pair
from specbench.config.compose import compose
from specbench.config.specs import PairSpec


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> PairSpec:
    return make_tiny_pair(tmp_path_factory.mktemp("pair"))


FEW = {"prompts": (0, 2), "seeds": (1,)}  # the shortest and the longest, greedy and sampled


@pytest.mark.parametrize("which", [FEW, pytest.param({}, marks=pytest.mark.slow)], ids=["few", "all"])
@pytest.mark.parametrize("variant", VARIANTS, ids=" ".join)
def test_rounds_are_those_recorded(
    variant: tuple[str, ...], which: dict[str, Any], pair: PairSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden_rounds.install(monkeypatch)
    recorded = json.loads(GOLDEN.read_text())[" ".join(variant)]
    rounds = rounds_of(variant, pair, **which)
    assert rounds == (recorded if not which else {key: recorded[key] for key in rounds}) and len(rounds) in (4, 9)


def test_the_recording_has_all_of_them_and_no_other() -> None:
    recorded = json.loads(GOLDEN.read_text())
    assert set(recorded) == {" ".join(variant) for variant in VARIANTS}
    assert Path(GOLDEN).stat().st_size < 200_000


@pytest.mark.parametrize(
    "variant",
    [("speculative",), ("speculative", "method.shape=dynamic"), ("amusd",), ("pearl", "method.draft_length=3")],
    ids=" ".join,
)
def test_no_draft_behind_the_end_counts_as_accepted(
    variant: tuple[str, ...], pair: PairSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The draft is the target itself, so that every draft stands, and the EOS falls on every place of a block."""
    golden_rounds.install(monkeypatch)
    node = compose([f"method={variant[0]}", *variant[1:]]).method
    bench = Bench(node, replace(pair, draft=replace(pair.target, role="draft")), PROMPTS)
    inside = 0
    try:
        for law in (GREEDY, SAMPLED):
            whole = bench.decode(law, bench.request(0)).output_ids
            for token in dict.fromkeys(whole[1:]):
                rounds = bench.decode(law, bench.request(0, eos_ids={token})).rounds
                assert all(r.num_accepted <= r.num_emitted <= r.num_accepted + 1 for r in rounds)
                assert all(r.num_discarded >= r.num_drafted - r.num_accepted for r in rounds), "the rest is discarded"
                inside += bool(rounds) and rounds[-1].num_emitted == rounds[-1].num_accepted
    finally:
        bench.close()
    assert inside > 3, "the EOS was an accepted draft"


def test_another_round_is_seen(pair: PairSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    golden_rounds.install(monkeypatch)
    recorded = json.loads(GOLDEN.read_text())["speculative"]
    rounds = rounds_of(("speculative", "method.draft_length=3"), pair, **FEW)
    assert rounds.keys() <= recorded.keys() and all(rounds[key] != recorded[key] for key in rounds)
