"""Drafts in workers that draft at once (`Drafting.at_once`): a block, the answer to a verdict that nobody foresaw, or a token.

Both sides run in one process, the draft until it has nothing more to do and then the target by one step, so that rounds depend
on nothing but what was drafted. What stands in for a graph is explained in `test_at_once`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import tiny
from test_at_once import LAWS, _stand_in, models, reads  # noqa: F401  (a fixture for all tests here)

from specbench.engine.backends import programs
from specbench.engine.backends.fixed import FixedSession
from specbench.engine.request import Request
from specbench.engine.target import open_session
from specbench.methods.chains.autoregressive import Autoregressive
from specbench.parts.contracts import Stop
from specbench.parts.rules.rule import RULES
from specbench.parts.schedules.calibration import Calibration, forward_timer
from specbench.parts.schedules.foreseeing import draft as branch_draft
from specbench.parts.schedules.foreseeing import plan as branch_plan
from specbench.parts.schedules.foreseeing import verify as branch_verify
from specbench.parts.schedules.free_running import draft as free_draft
from specbench.parts.schedules.free_running import verify as free_verify
from specbench.parts.schedules.lockstep import draft as block_draft
from specbench.parts.schedules.lockstep import verify as block_verify
from specbench.parts.schedules.lockstep.plan import Plan
from specbench.parts.schedules.sides import Drafting
from specbench.processes.mailbox import Mailbox
from specbench.processes.steps import Order, Progress

SCHEDULES = ("lockstep", "free-running", "foreseeing")
COLUMNS = ("num_drafted", "num_accepted", "num_emitted", "num_target_rows", "num_discarded")
LENGTH, TOKENS = 4, 22


def sides_of(schedule: str, law: Any, target: Any, stop: Stop | None = None) -> list[Any]:
    """The target's side and the draft's, which is yet to be opened."""
    mailbox, rule = Mailbox.local(), RULES["sample_match"]
    if schedule == "lockstep":
        return [
            block_verify.Verifier(mailbox, law, rule, target),
            block_draft.DraftSide(mailbox, law, "keyed", trace=True, stop=stop),
        ]
    if schedule == "free-running":
        return [
            free_verify.Verifier(mailbox, law, rule, 2, "plain", target),
            free_draft.DraftSide(mailbox, law, LENGTH, stop=stop, waited_for=2),
        ]
    return [
        branch_verify.Verifier(mailbox, law, rule, LENGTH, target),
        branch_draft.DraftSide(mailbox, law, LENGTH, "draft", 1.0),
    ]


def order_of(schedule: str, number: int, request: Request) -> Order:
    if schedule == "foreseeing":
        return branch_plan.Plan(number, request, 2)
    return Plan(number, request, LENGTH) if schedule == "lockstep" else Order(number, request)


def by_turns(target: Any, draft: Any) -> None:
    sides = [target, draft]
    for _ in range(5_000):
        if draft in sides:
            while (progress := draft.step()) is Progress.WORKED:
                pass
            if progress is Progress.FINISHED:
                sides.remove(draft)
        if target in sides and target.step() is Progress.FINISHED:
            sides.remove(target)
        if not sides:
            return
    raise AssertionError("no end")


@dataclass
class Said:
    """rows: by sample, ids and rounds. drafting: by drafting step of the last sample, host reads and tokens that came of it."""

    rows: list[Any] = field(default_factory=list)
    drafting: list[tuple[int, int]] = field(default_factory=list)
    reports: list[Any] = field(default_factory=list)
    draft: Any = None


def played(
    schedule: str,
    kind: str | None,
    law: str,
    eos_ids: Iterable[int] = (),
    architecture: str = "llama",
    stop: Stop | None = None,
    device: str = "cpu",
) -> Said:
    """Three prompts, one of them twice: what is met in the first sample is a program in the next."""
    made = models(architecture, kind)
    for model in made:
        model.module.to(device)
    said, around = Said(), tiny.runtime(made[0], law=LAWS[law], max_new_tokens=TOKENS, eos_ids=eos_ids)
    target, draft = sides = sides_of(schedule, LAWS[law], open_session(made[0]), stop)
    draft.open(made[1])
    said.draft = draft
    with pytest.MonkeyPatch.context() as patch, reads(patch) as found:
        real = draft._draft

        def counted() -> Progress:
            before, tokens = len(found), draft.report.num_forwards
            progress: Progress = real()
            said.drafting.append((len(found) - before, draft.report.num_forwards - tokens))
            if schedule != "foreseeing":
                text = len(draft.request.prompt_ids) + len(draft.tokens)
                assert draft.session.length == text - 1, "all of the text but its last token is fed"
            return progress

        draft._draft = counted
        for number, prompt in enumerate((0, 1, 2, 0), 1):
            said.drafting = []
            request = tiny.request(around, tiny.prompt(5 + prompt, prompt), str(prompt))
            for side in sides:
                side.prepare(order_of(schedule, number, request))
            by_turns(target, draft)
            rounds = [target.books.of_rounds(column) for column in COLUMNS]
            said.rows.append((target.books.output, rounds, draft.session.length, draft.report.num_forwards))
            said.reports.append(draft.report)
    return said


@functools.cache
def played_once(schedule: str, kind: str | None, law: str, eos_ids: frozenset[int] = frozenset()) -> Said:
    """The same for all tests that only look at it; nobody who breaks something takes it."""
    return played(schedule, kind, law, eos_ids)


@functools.cache
def some_ends(schedule: str, law: str) -> frozenset[int]:
    """An id that ends the text, and one that the draft says and the text does not hold: blocks end at it in their middle."""
    said, drafted = [], set()
    real = Drafting.at_once

    def seen(self: Drafting, *given: Any) -> Any:
        found = real(self, *given)
        drafted.update((found or [])[:-1])
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Drafting, "at_once", seen)
        said = played(schedule, "replayed", law).rows
    wrong = sorted(drafted - {token for row in said for token in row[0]})
    assert wrong, "a draft that is never wrong in the middle of a block says nothing of ends there"
    return frozenset({wrong[0], said[1][0][-4]})


# ------------------------------------------------------------------------------------------------------- the same rounds
@pytest.mark.parametrize("law", ["greedy", "sampled"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_rounds_are_those_of_token_by_token(schedule: str, law: str) -> None:
    eager, by_token, at_once = (played_once(schedule, kind, law) for kind in (None, "by_token", "replayed"))
    assert eager.rows == by_token.rows == at_once.rows
    accepted, drafted = (sum(sum(row[1][place]) for row in eager.rows) for place in (1, 0))
    assert 0 < accepted < drafted, "drafts stand, and drafts fall"
    for one, request in zip(at_once.rows, (0, 1, 2, 0), strict=True):
        around = tiny.runtime(models("llama", None)[0], law=LAWS[law], max_new_tokens=TOKENS)
        assert (
            one[0]
            == tiny.decode(Autoregressive(), around, tiny.prompt(5 + request, request), sample_id=str(request)).output_ids
        )


@pytest.mark.parametrize("architecture", ["gpt2", "mistral", "gemma3"])
def test_rounds_of_other_architectures(architecture: str) -> None:
    said = [played("lockstep", kind, "sampled", architecture=architecture).rows for kind in ("by_token", "replayed")]
    assert said[0] == said[1]


@pytest.mark.parametrize("law", ["greedy", "sampled"])
@pytest.mark.parametrize("schedule", ["lockstep", "foreseeing"])
def test_a_draft_ends_at_an_eos_in_its_middle(schedule: str, law: str) -> None:
    ends = some_ends(schedule, law)
    by_token, at_once = (played_once(schedule, kind, law, ends) for kind in ("by_token", "replayed"))
    assert by_token.rows == at_once.rows
    assert any(len(row[0]) < TOKENS for row in at_once.rows), "some text ends early"


@pytest.mark.parametrize("fault", ["goes on", "keeps rows"])
def test_one_that_drafts_on_behind_an_eos_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin."""
    ends = some_ends("lockstep", "sampled")
    right = played_once("lockstep", "by_token", "sampled", ends).rows
    real = Drafting.at_once

    def on(self: Drafting, *given: Any) -> Any:
        if fault == "goes on":
            request = self.request
            self.request = replace(request, eos_ids=frozenset())
            try:
                return real(self, *given)
            finally:
                self.request = request
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.session, "rollback", lambda length: None)
            return real(self, *given)

    monkeypatch.setattr(Drafting, "at_once", on)
    try:
        found = played("lockstep", "replayed", "sampled", ends).rows
    except (AssertionError, IndexError):
        return  # a cache that is ahead of its text
    assert found != right


@pytest.mark.parametrize("schedule", ["lockstep", "free-running"])
def test_a_stop_that_looks_at_tokens_keeps_its_way(schedule: str) -> None:
    class Second(Stop):
        """Every other token is the last of its draft."""

        def goes_on(self, logits: Any, token: int) -> bool:
            return bool(token % 2)

    said = [played(schedule, kind, "greedy", stop=Second()) for kind in ("by_token", "replayed")]
    assert said[0].rows == said[1].rows
    assert not any(isinstance(program, programs.Chain) for program in said[1].draft.session._programs.values())


# --------------------------------------------------------------------------------------------------------- one wait for all
@pytest.mark.parametrize("law", ["greedy", "sampled"])
@pytest.mark.parametrize("schedule", ["lockstep", "foreseeing"])
def test_a_draft_waits_once(schedule: str, law: str) -> None:
    found = played_once(schedule, "replayed", law)
    assert found.drafting and {waits for waits, _ in found.drafting} == {1}
    assert max(tokens for _, tokens in found.drafting) == LENGTH
    assert any(isinstance(program, programs.Chain) for program in found.draft.session._programs.values())


@pytest.mark.parametrize("schedule", ["lockstep", "foreseeing"])
def test_by_token_a_draft_waits_for_each(schedule: str) -> None:
    """The twin: the way of before."""
    found = played_once(schedule, "by_token", "greedy")
    assert {tokens for _, tokens in found.drafting} == {1}
    assert sum(waits for waits, _ in found.drafting) >= len(found.drafting)


def test_a_free_running_draft_is_one_program_for_each_token() -> None:
    found = played_once("free-running", "replayed", "sampled")
    assert set(found.drafting) == {(1, 1)}
    assert isinstance(found.draft.session, FixedSession)
    chains = [program for program in found.draft.session._programs.values() if isinstance(program, programs.Chain)]
    assert chains and {program.num_choices for program in chains} == {1}
    assert len(chains) == len(found.draft.session._programs), "no forward whose choice is made apart"


def test_seconds_of_a_block_are_those_of_its_tokens() -> None:
    found = played_once("lockstep", "replayed", "greedy")
    for report in found.reports:
        spans = [end - start for start, end, what in report.spans if what != "idle"]
        assert len(spans) == report.num_forwards
        assert sum(spans) == pytest.approx(report.draft_seconds + report.discarded_seconds)


# --------------------------------------------------------------------------------------------------- what calibrations time
@pytest.mark.parametrize("at_once", [0, 3])
def test_what_a_calibration_times_has_its_program(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Timed as written it would say what decoding never takes."""
    session = open_session(models("llama", "replayed")[1])
    measure = forward_timer(session, Calibration(12, 0.0), at_once)
    as_written: list[str] = []
    for kind in (programs.Chain, programs.Rows):
        real = kind._run

        def run(self: Any, rows: int, real: Any = real) -> Any:
            if self.made is None:
                as_written.append(self.name)
            return real(self, rows)

        monkeypatch.setattr(kind, "_run", run)
    assert measure() > 0 and not as_written
    assert isinstance(session, FixedSession)
    (program,) = [program for program in session._programs.values() if program.made is not None]
    assert isinstance(program, programs.Chain if at_once else programs.Rows)
    assert session.length == 12


def test_a_calibration_without_its_program_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: the session is never told."""
    session = open_session(models("llama", "replayed")[1])
    monkeypatch.setattr(session, "warm", lambda rows: None)
    forward_timer(session, Calibration(12, 0.0), 3)()
    assert isinstance(session, FixedSession) and all(program.made is None for program in session._programs.values())
