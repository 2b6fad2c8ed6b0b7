"""The books of a sample: what is emitted and when it ends, where the time went, what a round is; on a clock set by hand.

Histories are random; what must hold of every one of them is `check`. Twins keep their books wrongly and must fail it.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specbench.engine.request import Outcome, Request
from specbench.engine.tree import DraftTree, Riders, Verdict
from specbench.measure.metrics import IdentityError, RoundTable, check_identities
from specbench.measure.records.events import PARTS, SampleRecord
from specbench.measure.sensors.clock import HostClock
from specbench.parts.schedules.books import Books

EOS = 1


class SetClock(HostClock):
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.time = 100.0

    def stamp(self) -> float:
        return self.time


def request(max_new_tokens: int = 20, eos_ids: frozenset[int] = frozenset({EOS})) -> Request:
    return Request("s", 0, (5, 6), max_new_tokens, eos_ids, 0)


def begun(clock: SetClock, asked: Request | None = None, first: int = 9, kind: type[Books] = Books) -> Books:
    """Prefill took 3 seconds."""
    books = kind(asked or request(), clock)
    books.start()
    clock.time += 3
    books.first(first)
    books.decode()
    return books


def spend(books: Books, clock: SetClock, part: str, seconds: float) -> None:
    clock.time += seconds
    books.stamp(part)


# ------------------------------------------------------------------------------------------------------------- by hand
def test_a_round_reaches_from_the_end_of_the_one_before_to_its_own() -> None:
    clock = SetClock()
    books = begun(clock)
    assert (books.output, books.position, books.room, books.finished, books.num_rounds) == ([9], 1, 18, False, 0)

    spend(books, clock, "draft", 2)
    spend(books, clock, "verify", 4)
    books.round(DraftTree([7, 8, 3], [-1, 0, 0], num_forwards=2), Verdict((0, 2), (7, 3, 4)), target_share=0.5)
    clock.time += 1
    books.end_round()
    assert (books.output, books.position, books.room) == ([9, 7, 3, 4], 4, 15)

    spend(books, clock, "draft", 1)
    spend(books, clock, "verify", 5)
    books.round(DraftTree([5], num_forwards=1), Verdict((), (6,)))
    spend(books, clock, "other", 2)
    books.draft_version = 3
    clock.time += 0.5
    books.end_round("learn")

    spend(books, clock, "verify", 4)
    books.add("wait", 1.5)
    books.add("wait", 0.25)
    clock.time += 2
    books.round(DraftTree([]), Verdict((), (EOS,)))
    books.end_round()

    outcome = books.outcome()
    assert outcome.output_ids == [9, 7, 3, 4, 6, EOS] and outcome.finish_reason == "eos"
    assert (outcome.prefill_seconds, outcome.decode_seconds) == (3.0, 21.5)
    times = [(r.t_start, r.t_end, r.draft_seconds, r.verify_seconds, r.wait_seconds, r.learn_seconds) for r in outcome.rounds]
    assert times == [(0, 7, 2, 4, 0, 0), (7, 15.5, 1, 5, 0, 0.5), (15.5, 21.5, 0, 4, 1.75, 0)]
    first, second, third = outcome.rounds
    assert (first.num_drafted, first.num_accepted, first.num_emitted, first.num_discarded) == (3, 2, 3, 1)
    assert (first.draft_depth, first.rollback_depth, first.num_target_rows, first.num_draft_forwards) == (2, 0, 4, 2)
    assert (first.target_share, second.target_share) == (0.5, 1.0)
    assert (second.num_discarded, second.rollback_depth, second.draft_version, third.draft_version) == (1, 1, 0, 3)
    assert (third.num_drafted, third.num_emitted, third.num_target_rows) == (0, 1, 1)


def test_what_the_drafter_dropped_itself_and_riders_are_counted() -> None:
    clock = SetClock()
    books = begun(clock)
    dropped = DraftTree([], num_forwards=3, num_wasted=3, stale=True, phase="late", riders=Riders([-1, 0], [4, 5]))
    books.round(dropped, Verdict((), (4,)))
    books.end_round()
    books.emit((EOS,))
    books.round(DraftTree([]), Verdict((), (EOS,)))
    books.end_round()
    r = books.outcome().rounds[0]
    assert (r.num_drafted, r.num_discarded, r.rollback_depth, r.num_draft_forwards) == (0, 3, 3, 3)
    assert (r.num_target_rows, r.num_rider_rows, r.stale, r.phase) == (3, 2, True, "late")


def test_the_output_is_cut_at_its_end_token_and_at_its_limit() -> None:
    for limit, tokens, kept, finish, accepted in (
        (20, (7, EOS, 8), [7, EOS], "eos", 2),
        (20, (EOS, 7, 8), [EOS], "eos", 1),
        (4, (7, 8, 6, 5), [7, 8, 6], "length", 3),
        (4, (7, 8, EOS), [7, 8, EOS], "eos", 2),
        (9, (7, 8), [7, 8], None, 1),
    ):
        books = begun(SetClock(), request(limit))
        assert books.emit(tokens) == kept and books.output == [9, *kept] and books.finish == finish
        books.round(DraftTree([0] * 9), Verdict(tuple(range(len(tokens) - 1)), tokens))  # not emitted a second time
        assert books.output == [9, *kept] and books.of_rounds("num_emitted") == [len(kept)]
        # What the rule took behind the end was never kept: of nine drafts the rest is discarded.
        assert (books.of_rounds("num_accepted"), books.of_rounds("num_discarded")) == ([accepted], [9 - accepted])


@pytest.mark.parametrize(("first", "limit", "finish"), [(EOS, 20, "eos"), (9, 1, "length")])
def test_the_first_token_may_be_the_last(first: int, limit: int, finish: str) -> None:
    books = begun(SetClock(), request(limit), first)
    assert books.finished
    outcome = books.outcome()
    assert (outcome.output_ids, outcome.finish_reason, outcome.rounds, outcome.decode_seconds) == ([first], finish, [], 0.0)


def test_what_is_known_later_is_written_into_its_round() -> None:
    clock = SetClock()
    books = begun(clock, request(4))
    for token in (7, 8, 6):
        books.round(DraftTree([5]), Verdict((), (token,)))
        books.end_round()
    books.amend(1, num_discarded=4, rollback_depth=4)
    assert books.of_rounds("num_discarded") == [1, 4, 1]
    outcome = books.outcome(prefill_seconds=7.0, concurrent_seconds={"draft": 1.0})
    assert [r.rollback_depth for r in outcome.rounds] == [1, 4, 1]
    assert (outcome.prefill_seconds, outcome.concurrent_seconds) == (7.0, {"draft": 1.0})


def test_books_that_are_not_closed_have_no_outcome() -> None:
    books = begun(SetClock(), request(2))
    with pytest.raises(AssertionError):
        books.outcome()  # no end yet
    books.round(DraftTree([]), Verdict((), (7,)))
    with pytest.raises(AssertionError, match="not ended"):
        books.outcome()
    books.end_round()
    assert len(books.outcome().rounds) == 1


# ------------------------------------------------------------------------------------------------- any history at all
def play(seed: int, kind: type[Books] = Books) -> tuple[Outcome, dict[str, float], Request]:
    """A sample of random trees, verdicts and times; its outcome and where the time went, counted beside the books."""
    draw, clock = random.Random(seed), SetClock()
    asked = request(draw.choice([1, 2, 5, 17]), frozenset({EOS}) if draw.random() < 0.7 else frozenset())
    books = begun(clock, asked, draw.choice([9, 9, 9, EOS]), kind)
    spent = dict.fromkeys((*PARTS, "other"), 0.0)

    def pass_time(part: str) -> None:
        seconds = draw.choice([0.0, 0.5, 1.0, 2.25])
        clock.time += seconds
        spent[part] += seconds

    while not books.finished:
        size = draw.randrange(5)
        parents = [draw.randrange(-1, node) for node in range(size)] if draw.random() < 0.5 else None
        tree = DraftTree([draw.choice([3, 4, EOS, 5]) for _ in range(size)], parents, num_forwards=draw.randrange(4))
        path, node = [], draw.randrange(-1, size)
        while node >= 0:
            path, node = [node, *path], tree.parent(node)
        verdict = Verdict(tuple(path), (*(tree.tokens[node] for node in path), draw.choice([3, 4, EOS])))
        for part in ("draft", "verify"):
            pass_time(part)
            books.stamp(part)
        if draw.random() < 0.5:
            seconds = draw.choice([0.25, 1.0])
            clock.time += seconds
            spent["wait"] += seconds
            books.add("wait", seconds)
            books.stamp("other")
        if draw.random() < 0.5:
            books.emit(verdict.tokens)
        books.round(tree, verdict)
        last = draw.choice(["other", "learn"])
        pass_time(last)
        books.end_round(last)
    return books.outcome(), spent, asked


def check(outcome: Outcome, spent: dict[str, float], asked: Request) -> None:
    """What holds of every sample: tokens, rows, and every second in one place."""
    rounds = outcome.rounds
    record = SampleRecord(
        "s", 0, 0, "method", 0, None, asked.prompt_ids, tuple(outcome.output_ids), outcome.finish_reason,
        outcome.prefill_seconds, outcome.decode_seconds, len(outcome.output_ids) - 1, len(rounds),
    )  # fmt: skip
    check_identities([record], RoundTable.of({record.key: rounds}))
    assert len(outcome.output_ids) <= asked.max_new_tokens and not asked.eos_ids & set(outcome.output_ids[:-1])
    ends = [0.0, *(r.t_end for r in rounds)]
    assert [r.t_start for r in rounds] == ends[:-1] and ends[-1] == outcome.decode_seconds, "time between rounds"
    for part in PARTS:
        assert sum(getattr(r, f"{part}_seconds") for r in rounds) == spent[part], part
    assert outcome.decode_seconds == sum(spent.values()) and outcome.prefill_seconds == 3.0
    for r in rounds:
        assert sum(getattr(r, f"{part}_seconds") for part in PARTS) <= r.t_end - r.t_start
        assert 0 <= r.num_accepted <= r.num_drafted == r.num_target_rows - 1 and r.draft_depth <= r.num_drafted
        assert r.num_discarded == r.num_drafted - r.num_accepted
        assert max(1, r.num_accepted) <= r.num_emitted <= r.num_accepted + 1


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 2**32))
def test_every_token_and_every_second_is_in_one_place(seed: int) -> None:
    check(*play(seed))


class EmitsTwice(Books):
    """Forgets that the tokens of this round are in the output already."""

    def emit(self, tokens: tuple[int, ...]) -> list[int]:
        kept = super().emit(tokens)
        self._kept = None
        return kept


class BeginsAtItsDraft(Books):
    """A round that ends with its verdict: what comes behind it is lost."""

    def end_round(self, part: str = "other") -> None:
        super().end_round(part)
        self._ends[-1] -= 1


class AddsToTheNext(Books):
    """What others timed comes a round late."""

    def add(self, part: str, seconds: float) -> None:
        self._added.append({})
        super().add(part, seconds)


class GivesOtherToVerify(Books):
    def stamp(self, part: str) -> None:
        super().stamp("verify" if part == "other" and self.num_rounds else part)


class CountsAllAsAccepted(Books):
    def round(self, tree: DraftTree, verdict: Verdict, **facts: Any) -> None:
        super().round(tree, verdict, num_accepted=len(tree.tokens) + 1, **facts)


class CountsBehindTheEnd(Books):
    """Calls accepted what the rule took, also behind the EOS."""

    def round(self, tree: DraftTree, verdict: Verdict, **facts: Any) -> None:
        super().round(tree, verdict, num_accepted=verdict.num_accepted, **facts)


class CutsAtTheEndOnly(Books):
    """Goes on behind an EOS."""

    def emit(self, tokens: tuple[int, ...]) -> list[int]:
        asked = self.request
        self.request = Request("s", 0, asked.prompt_ids, asked.max_new_tokens, frozenset(), 0)
        kept = super().emit(tokens)
        self.request = asked
        return kept


@pytest.mark.parametrize(
    "wrong",
    [
        *(EmitsTwice, BeginsAtItsDraft, AddsToTheNext, GivesOtherToVerify),
        *(CountsAllAsAccepted, CountsBehindTheEnd, CutsAtTheEndOnly),
    ],
)
def test_books_kept_wrongly_are_found(wrong: type[Books]) -> None:
    with pytest.raises((AssertionError, IdentityError)):
        for seed in range(50):
            check(*play(seed, wrong))
