"""Schedules over known errors: limits and formulas; the free-running one against the real step functions on a virtual clock."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_sessions import FakeSession, Language, imitation

from specbench.config.draft_errors import DraftErrors
from specbench.engine.request import Request
from specbench.engine.sampling import SamplingLaw
from specbench.measure.theory.formulas import emitted_lockstep, emitted_sequential
from specbench.measure.theory.played import Step, Times, accepted_run, free_running, lockstep, sequential
from specbench.parts.rules.rule import RULES
from specbench.parts.schedules.free_running.draft import DraftSide
from specbench.parts.schedules.free_running.verify import Verifier
from specbench.processes.mailbox import Mailbox
from specbench.processes.steps import Order

sys.path.insert(0, str(Path(__file__).resolve().parent / "bench"))
from amusd_policy import DelayedSlot, World

PATTERNS = ("never", "always", "iid:0.1", "iid:0.3", "iid:0.6", "every:4", "bursts:12+4", "bursts:2+3", "end:0.25")


def wrong(text: str, limit: int, sample: str = "s/0") -> Callable[[int], bool]:
    return DraftErrors.parse(text).wrong_positions(sample, 0, limit)


def total(steps: list[Step]) -> int:
    return sum(step.emitted for step in steps)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("num_tokens", [1, 2, 3, 17, 40])
def test_every_token_is_emitted_once(pattern: str, num_tokens: int) -> None:
    """Whether the output ends at its limit or before it; the prefill's token comes first."""
    for limit in (num_tokens, 40):
        made = [sequential(wrong(pattern, limit), num_tokens, limit, 4)]
        made += [lockstep(wrong(pattern, limit), num_tokens, limit, 4, ends) for ends in (False, True)]
        times = Times(1.0, 4.0)
        made += [free_running(wrong(pattern, limit), num_tokens, limit, times, ends=ends)[0] for ends in (False, True)]
        for steps in made:
            assert total(steps) == num_tokens - 1
            assert all(0 <= s.accepted <= s.drafted and 1 <= s.emitted <= s.accepted + 1 for s in steps)


def test_accepted_run_stops_at_the_first_error() -> None:
    is_wrong = wrong("every:4", 40)
    assert [accepted_run(is_wrong, start, 5) for start in (1, 2, 3, 4, 5)] == [3, 2, 1, 0, 3]
    assert accepted_run(is_wrong, 1, 2) == 2 and accepted_run(is_wrong, 1, 0) == 0


def test_a_sample_by_hand() -> None:
    """Position 4 is wrong: four drafts from 1 on, three stand; then four from 5 on, and so on."""
    assert sequential(wrong("every:4", 12), 12, 12, 4) == [Step(4, 3, 4, 4), Step(4, 3, 4, 4), Step(2, 2, 3, 2)]
    # Pre-verify 1 | post-verify 2, 3, 4 and 5 of the new block: 4 is wrong | pre-verify 5 | ...
    assert lockstep(wrong("every:4", 9), 9, 9, 4) == [
        Step(1, 1, 1, 4), Step(4, 2, 3, 3), Step(1, 1, 1, 3), Step(2, 2, 3, 0),
    ]  # fmt: skip


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.6])
def test_long_samples_meet_the_formulas(rate: float) -> None:
    length = 4_000
    is_wrong = wrong(f"iid:{rate}", length)
    for steps, formula in (
        (sequential(is_wrong, length, length, 4), emitted_sequential(1 - rate, 4)),
        (lockstep(is_wrong, length, length, 4), emitted_lockstep(1 - rate, 4)),
    ):
        assert total(steps) / len(steps) == pytest.approx(formula, rel=0.06)


def real_sides(is_wrong: Callable[[int], bool], limit: int, times: Times, draft_length: int) -> tuple[list[Step], float]:
    """The step functions of the method itself, on a virtual clock with messages that take next to no time."""
    prompt = (2, 3, 4)
    world, language, law = World(times, latency=1e-7), Language(3, eos_rate=0.0), SamplingLaw()
    mailbox = Mailbox(DelayedSlot(world), DelayedSlot(world))
    drafter = DraftSide(mailbox, law, 16)

    table = imitation(language, lambda prefix: not is_wrong(len(prefix) - len(prompt)))

    def paying(session: FakeSession, cost: Callable[[int], float]) -> FakeSession:
        """Every forward but the prefill takes its time: both sides start when the first token is there."""

        def pay(rows: int) -> None:
            world.spent += cost(rows) if session.length > len(prompt) else 0.0

        session.cost = pay
        return session

    drafter.session = paying(FakeSession(table), lambda rows: times.draft)
    target = paying(FakeSession(language.logits), times.target)
    verifier = Verifier(mailbox, law, RULES["greedy_match"], draft_length, "plain", target)
    order = Order(1, Request("s", 0, prompt, limit, frozenset({99}), 1))
    verifier.prepare(order)
    drafter.prepare(order)
    seconds = world.play([verifier, drafter])
    return [Step(r.num_drafted, r.num_accepted, r.num_emitted) for r in verifier.books.outcome().rounds], seconds


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("verify", "draft_length"), [(4.37, 2), (1.61, 2), (4.37, 0), (7.77, 4)])
def test_free_running_is_what_the_real_sides_do(pattern: str, verify: float, draft_length: int) -> None:
    """Round for round, and in the same time."""
    limit, times = 60, Times(1.0, verify, 0.013 * verify)
    found, seconds = real_sides(wrong(pattern, limit), limit, times, draft_length)
    steps, expected = free_running(wrong(pattern, limit), limit, limit, times, draft_length)
    assert found == steps
    assert seconds == pytest.approx(expected, rel=1e-4)


def test_another_schedule_is_told_apart() -> None:
    """The comparison above can fail: one draft more to wait for, or a faster target, make other rounds."""
    is_wrong = wrong("iid:0.3", 60)
    found, _ = real_sides(is_wrong, 60, Times(1.0, 4.37, 0.05681), 2)
    assert found != free_running(is_wrong, 60, 60, Times(1.0, 4.37, 0.05681), 3)[0]
    assert found != free_running(is_wrong, 60, 60, Times(1.0, 2.2, 0.0286), 2)[0]


def test_a_free_running_draft_is_bound_by_its_own_speed() -> None:
    limit = 200
    for verify in (2.0, 4.0, 8.0):
        _, seconds = free_running(wrong("never", limit), limit, limit, Times(1.0, verify))
        assert (limit - 1) / seconds <= 1.02  # the look-ahead when the clock starts is free
