"""Patterns of wrong drafts: where each is wrong, how often, what is refused."""

from __future__ import annotations

import math

import pytest

from specbench.config.draft_errors import FORMS, DraftErrors, wrong_token
from specbench.config.options import ConfigError

LIMIT = 40


def wrong(text: str, sample: str = "s/0", turn: int = 0, limit: int = LIMIT) -> list[int]:
    is_wrong = DraftErrors.parse(text).wrong_positions(sample, turn, limit)
    return [position for position in range(1, limit) if is_wrong(position)]


def test_never_and_always() -> None:
    assert wrong("never") == []
    assert wrong("always") == list(range(1, LIMIT))


def test_every_k() -> None:
    assert wrong("every:4") == [4, 8, 12, 16, 20, 24, 28, 32, 36]
    assert wrong("every:1") == wrong("always")


def test_bursts_begin_with_right_ones() -> None:
    assert wrong("bursts:5+3", limit=20) == [6, 7, 8, 14, 15, 16]
    assert wrong("bursts:0+3") == wrong("always")


def test_end_is_a_share_of_the_limit() -> None:
    assert wrong("end:0.25") == list(range(30, LIMIT))
    assert wrong("end:0") == [] and wrong("end:1") == wrong("always")


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.9])
def test_iid_has_its_rate_and_no_memory(rate: float) -> None:
    limit, num_samples = 200, 50
    rows = [set(wrong(f"iid:{rate}", f"s/{number}", limit=limit)) for number in range(num_samples)]
    draws = num_samples * (limit - 1)
    found = sum(map(len, rows)) / draws
    assert abs(found - rate) < 4 * math.sqrt(rate * (1 - rate) / draws)
    pairs = num_samples * (limit - 2)
    both = sum(p in row and p + 1 in row for row in rows for p in range(1, limit - 1)) / pairs
    assert abs(both - rate**2) < 5 * math.sqrt(rate**2 * (1 - rate**2) / pairs)


def test_iid_ends_are_never_and_always() -> None:
    assert wrong("iid:0") == [] and wrong("iid:1") == wrong("always")


def test_iid_is_keyed_by_sample_turn_and_seed() -> None:
    assert wrong("iid:0.5") == wrong("iid:0.5@0")
    others = [wrong("iid:0.5", "s/1"), wrong("iid:0.5", turn=1), wrong("iid:0.5@1")]
    assert all(other != wrong("iid:0.5") for other in others)


def test_more_errors_keep_those_that_there_were() -> None:
    """One hash decides for every rate: curves over the rate are paired, not only alike."""
    assert set(wrong("iid:0.2")) < set(wrong("iid:0.6"))


@pytest.mark.parametrize(
    "text",
    ["", "sometimes", "never:", "never:1", "always:2", "iid", "iid:", "iid:x", "iid:-0.1", "iid:1.5", "iid:0.5@", "every:0",
     "every:2.5", "bursts:5", "bursts:5+0", "bursts:+3", "end", "end:2", "every:4 ", "iid:nan", "iid:1e-2"],
)  # fmt: skip
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        DraftErrors.parse(text)
    assert caught.value.key == "pair.draft_errors" and caught.value.value == text


def test_the_refusal_names_the_forms() -> None:
    with pytest.raises(ConfigError, match="every:<k>"):
        DraftErrors.parse("sometimes")
    for form in FORMS.split(", "):
        assert form.partition(":")[0] in ("never", "always", "iid", "every", "bursts", "end")


def test_wrong_tokens_are_wrong_and_end_nothing() -> None:
    never = frozenset({0, 3})
    drawn = {(right, at): wrong_token(right, "s", 0, at, 8, never) for right in range(8) for at in range(50)}
    assert all(token != right and token not in never and 0 <= token < 8 for (right, _), token in drawn.items())
    assert {token for (right, _), token in drawn.items() if right == 5} == {1, 2, 4, 6, 7}, "all others occur"


def test_no_wrong_token_is_said_aloud() -> None:
    with pytest.raises(ValueError, match="no wrong token"):
        wrong_token(1, "s", 0, 1, 2, frozenset({0}))
