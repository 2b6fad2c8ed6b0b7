"""Every method still makes the rounds that it made when they were recorded (see golden_rounds.py)."""

from __future__ import annotations

import json
from pathlib import Path

import golden_rounds
import pytest
from golden_rounds import GOLDEN, VARIANTS, rounds_of

from specbench.check.tiny import make_tiny_pair
from specbench.config.specs import PairSpec


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> PairSpec:
    return make_tiny_pair(tmp_path_factory.mktemp("pair"))


@pytest.mark.parametrize("variant", VARIANTS, ids=" ".join)
def test_rounds_are_those_recorded(variant: tuple[str, ...], pair: PairSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    golden_rounds.install(monkeypatch)
    recorded = json.loads(GOLDEN.read_text())[" ".join(variant)]
    assert rounds_of(variant, pair) == recorded


def test_the_recording_has_all_of_them_and_no_other() -> None:
    recorded = json.loads(GOLDEN.read_text())
    assert set(recorded) == {" ".join(variant) for variant in VARIANTS}
    assert Path(GOLDEN).stat().st_size < 200_000


def test_another_round_is_seen(pair: PairSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    golden_rounds.install(monkeypatch)
    recorded = json.loads(GOLDEN.read_text())["speculative"]
    assert rounds_of(("speculative", "method.draft_length=3"), pair) != recorded
