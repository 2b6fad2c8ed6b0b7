"""The sides of a schedule in one process, interleaved by a seed: whatever two processes can do to each other, and no sleeping.

A step holds at most one mailbox operation (asserted on `counting_mailbox`), so interleaving steps is interleaving everything.
"""

from __future__ import annotations

import collections
import contextlib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from fake_sessions import EOS_IDS, Language

from specbench.engine.request import Request
from specbench.engine.sampling import SamplingLaw
from specbench.processes.mailbox import LocalSlot, Mailbox, Message
from specbench.processes.steps import Progress

MAX_STEPS = 20_000


class Deadlock(AssertionError):
    """All sides wait for ever, or one of them never ends."""


class CountingSlot(LocalSlot):
    """Counts operations: a step may hold one, beside looks at the version."""

    operations = 0

    def publish(self, *args: Any, **kwargs: Any) -> None:
        self.operations += 1
        super().publish(*args, **kwargs)

    def read(self, start: int) -> Message:
        self.operations += 1
        return super().read(start)


def counting_mailbox() -> Mailbox:
    return Mailbox(CountingSlot(), CountingSlot())


@dataclass
class Timing:
    """How the next side is chosen.

    target_weight: how often the target (the first side) is, when all can run: small is a slow one; None: it changes.
    slow_forward: others work while the target's verdict is under way. wake: what makes a side run again that waits, news (its
    slot changed), timeout (25 steps later, whether anything came or not) or spurious (sometimes for no reason).
    """

    target_weight: float | None = 0.5
    slow_forward: bool = False
    wake: str = "news"

    @classmethod
    def drawn(cls, rng: random.Random) -> Timing:
        return cls(
            target_weight=rng.choice([0.03, 0.1, 0.25, 0.5, 0.9, 0.97, None]),
            slow_forward=rng.random() < 0.6,
            wake=rng.choice(["news", "timeout", "spurious"]),
        )


class Sample:
    """What a test's case, a dataclass of a seed and all that hangs on it, says of its sample."""

    seed: int
    max_new_tokens: int
    temperature: float
    eos_rate: float

    def request(self) -> Request:
        rng = random.Random(~self.seed)
        prompt = tuple(rng.randrange(2, 12) for _ in range(rng.randrange(1, 9)))
        return Request(f"s{self.seed}", 0, prompt, self.max_new_tokens, EOS_IDS, noise_key=self.seed)

    def law(self) -> SamplingLaw:
        return SamplingLaw(temperature=self.temperature, seed=self.seed)

    def language(self) -> Language:
        return Language(self.seed % 7, self.eos_rate, spread=3.0 if self.temperature else 0.0)


def all_met(seen: Mapping[str, int], situations: Iterable[str], least: int) -> None:
    """Raise AssertionError for situations that came up less than `least` times: nothing would be proven of them."""
    missing = {what: seen[what] for what in situations if seen[what] < least}
    assert not missing, f"too rare to prove anything: {missing}"


def played(make: Callable[[int], Any], num_seeds: int, samples: Sequence[int] = (1,)) -> collections.Counter[str]:
    """What came up in the plays of so many seeds, each with these samples on the same mailboxes."""
    seen: collections.Counter[str] = collections.Counter()
    for seed in range(num_seeds):
        play = make(seed)
        for number in samples:
            play.sample(number, play.case.request())
        seen += play.seen
    return seen


def caught(make: Callable[[int], Any], num_seeds: int, error: str, *kinds: type[Exception]) -> BaseException:
    """The error by which a mutant's play is found, which the same seed gives again; AssertionError if no seed finds it."""
    for seed in range(num_seeds):
        play = make(seed)
        with contextlib.suppress(AssertionError, *kinds):
            play.sample(1, play.case.request())
            continue
        again = make(seed)
        with pytest.raises((AssertionError, *kinds), match=error) as found:
            again.sample(1, again.case.request())
        return found.value
    raise AssertionError("the checks do not see it")


def interleave(
    sides: list[Any],
    rng: random.Random,
    timing: Timing | None = None,
    mailbox: Mailbox | None = None,
    state: Callable[[], str] = lambda: "",
    note: Callable[[str], object] = lambda what: None,
    after: Callable[[], None] = lambda: None,
) -> None:
    """Step until all sides have finished. mailbox: a counting one, to hold steps to one operation; state: for errors; note: is
    told of wake-ups without news; after: called behind every step. Raises Deadlock."""
    timing = timing or Timing()
    sides, target, weight = list(sides), sides[0], timing.target_weight
    asleep_since: dict[int, int] = {}

    def wakes(side: Any, tick: int) -> bool:
        if id(side) not in asleep_since:
            return True
        news = bool(side.inbox.version() != side.seen_version)
        if timing.wake == "news":
            return news
        if timing.wake == "spurious":
            return news or (rng.random() < 0.3 and (note("spurious wake-up"), True)[1])
        # Every bell is lost: only the time-out wakes.
        return tick - asleep_since[id(side)] >= 25 and (news or (note("time-out without news"), True)[1])

    def operations() -> int:
        return 0 if mailbox is None else mailbox.committed.operations + mailbox.drafts.operations  # type: ignore[attr-defined]

    for tick in range(MAX_STEPS):
        if not sides:
            return
        awake = [side for side in sides if wakes(side, tick)]
        if not awake:
            if all(side.inbox.version() == side.seen_version for side in sides):
                raise Deadlock(f"all wait: {state()}")
            continue  # the time-out will come
        if timing.target_weight is None and tick % 8 == 0:
            weight = rng.choice([0.02, 0.2, 0.5, 0.98])
        assert weight is not None
        own = weight
        if timing.slow_forward and target._next == target._publish:
            own = min(weight, 0.05)  # the verdict is on its way, the others go on
        side = rng.choices(awake, [own if side is target else 1 - own for side in awake])[0]
        before = operations()
        progress = side.step()
        assert operations() - before <= 1, "one mailbox operation a step: else there are interleavings unseen"
        asleep_since.pop(id(side), None)
        if progress is Progress.FINISHED:
            sides.remove(side)
        elif progress is Progress.IDLE:
            asleep_since[id(side)] = tick
        after()
    raise Deadlock(f"no end after {MAX_STEPS} steps: {state()}")
