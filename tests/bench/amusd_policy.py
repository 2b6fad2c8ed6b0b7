"""What AMUSD's settings are worth, on a virtual clock: the real step functions, with forwards that cost what a table says.

    python tests/bench/amusd_policy.py [--tokens 400] [--samples 20] [--ratios 4 7] [--policies plain]

The target's forward of n rows takes t_verify * (1 + slope * (n - 1)), the draft's takes t_draft (t_draft = 1 is the unit), a
message arrives `latency` later. The draft's token is right with probability a, independently, as long as its prefix is right.
Printed: tokens per unit of time, relative to speculative decoding with its best draft length, whose rounds cost
k * t_draft + t_verify(k + 1). No machine is measured here: this says what a policy can give when nothing is in its way.
"""

from __future__ import annotations

import argparse
import heapq
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fake_sessions import FakeSession, Language, _hash, imitation

from specbench.engine.request import Request
from specbench.engine.sampling import SamplingLaw
from specbench.measure.theory.formulas import emitted_sequential
from specbench.measure.theory.played import Times
from specbench.parts.rules.rule import RULES
from specbench.parts.schedules.free_running.draft import DraftSide
from specbench.parts.schedules.free_running.verify import STALE_POLICIES, Verifier
from specbench.processes.mailbox import LocalSlot, Mailbox, Message
from specbench.processes.steps import Order, Progress

EPSILON = 1e-9


class DelayedSlot(LocalSlot):
    """A message becomes visible `latency` after it was sent; `clock` says the time of whoever asks."""

    def __init__(self, world: World):
        super().__init__()
        self.world = world
        self.under_way: list[tuple[float, tuple[Any, ...], dict[str, Any]]] = []

    def publish(self, *args: Any, **kwargs: Any) -> None:
        self.under_way.append((self.world.time + self.world.latency, args, kwargs))
        self.world.alarm(self.under_way[-1][0])

    def arrive(self) -> None:
        while self.under_way and self.under_way[0][0] <= self.world.time + EPSILON:
            _, args, kwargs = self.under_way.pop(0)
            super().publish(*args, **kwargs)

    def version(self) -> int:
        self.arrive()
        return super().version()

    def read(self, start: int) -> Message:
        self.arrive()
        return super().read(start)


class World:
    """An event loop over virtual time: each side is busy until its forward is paid for."""

    def __init__(self, times: Times, latency: float = 0.02):
        self.times, self.latency, self.time = times, latency, 0.0
        self.spent = 0.0  # by the step under way
        self.events: list[float] = []

    def alarm(self, at: float) -> None:
        heapq.heappush(self.events, at)

    def play(self, sides: Iterable[Any]) -> float:
        """Run to the end; the time at which the first side (the target) was finished."""
        sides = list(sides)
        target = sides[0]
        free_at = {id(side): 0.0 for side in sides}
        waiting: set[int] = set()
        while True:
            for side in sides:
                while free_at[id(side)] <= self.time + EPSILON:
                    if id(side) in waiting and side.inbox.version() == side.seen_version:
                        break
                    waiting.discard(id(side))
                    self.spent = 0.0
                    progress = side.step()
                    free_at[id(side)] = self.time + self.spent
                    if self.spent:
                        self.alarm(self.time + self.spent)
                    if progress is Progress.FINISHED:
                        if side is target:
                            return self.time
                        free_at[id(side)] = float("inf")
                    elif progress is Progress.IDLE:
                        waiting.add(id(side))
                        break
            assert self.events, "both sides wait for ever"
            self.time = max(self.time, heapq.heappop(self.events))


def amusd(
    times: Times, acceptance: float, draft_length: int, stale: str, tokens: int, samples: int, lookahead: int = 16
) -> float:
    """Tokens per draft forward's time."""
    seconds = 0.0
    emitted = 0
    for number in range(samples):
        world = World(times)
        law, language = SamplingLaw(), Language(number, eos_rate=0.0)
        mailbox = Mailbox(DelayedSlot(world), DelayedSlot(world))
        drafter = DraftSide(mailbox, law, max(lookahead, draft_length))

        def pay_draft(rows: int, world: World = world) -> None:
            world.spent += world.times.draft

        def pay_target(rows: int, world: World = world) -> None:
            world.spent += world.times.target(rows)

        def right(prefix: tuple[int, ...], number: int = number) -> bool:
            return _hash(number, prefix, 5) % 100_000 < 100_000 * acceptance

        drafter.session = FakeSession(imitation(language, right), pay_draft)
        target = FakeSession(language.logits, pay_target)
        verifier = Verifier(mailbox, law, RULES["greedy_match"], draft_length, stale, target)
        order = Order(1, Request("s", 0, (2, 3, 4), tokens, frozenset({0}), number))
        verifier.prepare(order)
        drafter.prepare(order)
        seconds += world.play([verifier, drafter]) - times.target(1)  # the prefill
        emitted += len(verifier.books.output) - 1
    return emitted / seconds


def speculative(times: Times, acceptance: float, draft_length: int) -> float:
    """Sequential drafting in closed form: the formula's tokens of a round over its k drafts and one verification."""
    return emitted_sequential(acceptance, draft_length) / (draft_length * times.draft + times.target(draft_length + 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=200, help="tokens of a sample")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--slope", type=float, default=0.03)
    parser.add_argument("--lookahead", type=int, default=16)
    parser.add_argument("--policies", nargs="*", default=list(STALE_POLICIES))
    parser.add_argument("--ratios", type=float, nargs="*", default=[4, 5, 7, 10, 16])
    parser.add_argument("--acceptance", type=float, nargs="*", default=[0.5, 0.6, 0.7, 0.8, 0.9])
    parser.add_argument("--lengths", type=int, nargs="*", default=list(range(9)))
    given = parser.parse_args()
    print("tokens per time over those of speculative decoding at its best draft length k*; columns: draft_length")
    for ratio in given.ratios:
        times = Times(1.0, ratio, given.slope * ratio)
        for a in given.acceptance:
            best = max(range(1, 17), key=lambda k: speculative(times, a, k))
            base = speculative(times, a, best)
            over_plain = base * times.target(1)
            print(f"\nt_verify/t_draft {ratio:g}, acceptance {a:g}: k* = {best}, {over_plain:.2f}x over plain decoding")
            print(f"{'':8}" + "".join(f"{k:>7}" for k in given.lengths))
            for policy in given.policies:
                row = [amusd(times, a, k, policy, given.tokens, given.samples, given.lookahead) / base for k in given.lengths]
                print(f"{policy:8}" + "".join(f"{value:7.3f}" for value in row))


if __name__ == "__main__":
    main()
