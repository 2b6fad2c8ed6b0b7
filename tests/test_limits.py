"""Options whose product no memory holds, and no patience awaits, are refused where the method is made."""

from __future__ import annotations

from typing import Any

import pytest

from specbench.config.options import ConfigError
from specbench.method import create_method

TOO_MUCH: list[tuple[str, dict[str, Any], str]] = [
    ("heads.eagle.Eagle", {"top_k": 100_000}, "top_k"),
    ("text.lookahead.Lookahead", {"window": 1000, "ngram": 50}, "window"),
    ("overlap.mirror_sd.MirrorSd", {"num_candidates": 100_000}, "num_candidates"),
]
MUCH: list[tuple[str, dict[str, Any]]] = [
    ("heads.eagle.Eagle", {"top_k": 64}),
    ("text.lookahead.Lookahead", {"window": 15, "ngram": 5, "guesses": 15}),
    ("overlap.mirror_sd.MirrorSd", {"num_candidates": 800}),
]


@pytest.mark.parametrize(("target", "options", "key"), TOO_MUCH)
def test_more_than_a_round_can_hold_is_refused_by_its_key(target: str, options: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as raised:
        create_method({"_target_": f"specbench.methods.{target}", **options})
    assert raised.value.key == f"method.{key}" and "4" in raised.value.remedy


@pytest.mark.parametrize(("target", "options"), MUCH)
def test_what_a_round_holds_is_taken(target: str, options: dict[str, Any]) -> None:
    create_method({"_target_": f"specbench.methods.{target}", **options})
