"""What one message costs: publish, look, read, and the way to another process and back.

    python tests/bench/messages.py [--count 20000]

Run it on a machine that does nothing else. Printed, in microseconds: median, 90th and 99th percentile. The ways of waiting
(spin for so long and then sleep at the doorbell; 0: doorbell alone) take turns, half of the messages each time, so
that all see one machine; with each, how many messages found the reader asleep. One way is
from before the writer's publish to behind the reader's wait, by the clock that all processes of a machine share; the goal is
20 microseconds. Between an answer and the next message the writer computes (products with a matrix): what that takes beside
a reader that waits in this way is printed too, on two cores and on one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from specbench.measure.sensors.clock import now
from specbench.processes.mailbox import DONE, SharedSlot
from specbench.processes.placement import available_cores, pin


def echo(inbox: SharedSlot, outbox: SharedSlot, spin_seconds: float, cores: tuple[int, ...]) -> None:
    """Answer every message at once with the time at which it came, in nanoseconds, until one says DONE."""
    pin(cores)
    inbox.SPIN_SECONDS = spin_seconds  # type: ignore[misc]
    seen = 0
    while True:
        while not inbox.wait(seen, 1.0):
            pass
        arrived = now()
        message = inbox.read(0)
        seen = message.version
        if message.flag == DONE:
            return
        outbox.publish(0, 0, 0, [round(1e9 * arrived)])


def timed(action: Callable[[], object], count: int) -> list[float]:
    """Microseconds of each call."""
    durations = []
    for _ in range(count):
        start = now()
        action()
        durations.append(1e6 * (now() - start))
    return durations


def show(what: str, durations: list[float], note: str = "") -> None:
    ordered = sorted(durations)
    shares = (ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.9, 0.99))
    print(f"{what:58}" + "".join(f"{value:9.2f}" for value in shares) + note)


def alone(count: int) -> None:
    """One process, nobody waiting."""
    slot = SharedSlot(256)
    slot.publish(1, 0, 0, list(range(128)))
    seen = slot.version()
    show("nothing (the clock itself)", timed(lambda: None, count))
    show("version", timed(slot.version, count))
    show("publish one token", timed(lambda: slot.publish(1, 0, 64, [7]), count))
    show("publish eight tokens", timed(lambda: slot.publish(1, 0, 64, [1, 2, 3, 4, 5, 6, 7, 8]), count))
    show("read one new token", timed(lambda: slot.read(71), count))
    show("read 72 tokens (what a reader without a cursor pays)", timed(lambda: slot.read(0), count))
    show("wait when there is news", timed(lambda: slot.wait(seen - 1, 1.0), count))


WAYS_SECONDS = (0.0, 50e-6, 200e-6, 1e-3, 5e-3, 1e9)  # of spinning, before the reader sleeps
PRODUCTS = (0, 1, 10, 80)  # that the writer computes between an answer and the next message
WEIGHTS = np.random.default_rng(0).random((1024, 1024), dtype=np.float32)


@dataclass
class Seen:
    """Microseconds of each message, of the computing before it; how many had to wake the reader."""

    ways: list[float] = field(default_factory=list)
    work: list[float] = field(default_factory=list)
    woken: int = 0


def one_way(count: int, products: int, apart: bool) -> dict[float, Seen]:
    """By way of waiting, `count` messages. apart: each process has a core of its own."""
    cores, context = available_cores(), multiprocessing.get_context("spawn")
    pairs = {way: (SharedSlot(8), SharedSlot(8)) for way in WAYS_SECONDS}
    found = {way: Seen() for way in WAYS_SECONDS}
    vector = np.ones(len(WEIGHTS), np.float32)
    pin(cores[:1])
    try:
        for way in [way for _ in range(2) for way in WAYS_SECONDS]:  # in turns: each sees the machine twice
            (there, back), seen = pairs[way], found[way]
            back.SPIN_SECONDS = way  # type: ignore[misc]
            arguments = (there, back, way, cores[-1:] if apart else cores[:1])
            child = context.Process(target=echo, args=arguments, daemon=True)
            child.start()
            for number in range(-20, count // 2):
                begun = now()
                for _ in range(products):
                    WEIGHTS.dot(vector)
                asleep, version, start = there.has_sleeper, back.version(), now()
                there.publish(0, 0, 0, [number + 20])
                while not back.wait(version, 1.0):
                    assert child.is_alive()
                arrived = 1e-9 * back.read(0).tokens[0]
                if number >= 0:
                    seen.ways.append(1e6 * (arrived - start))
                    seen.work.append(1e6 * (start - begun))
                    seen.woken += asleep
            there.publish(0, 0, 0, [], flag=DONE)
            child.join()
    finally:
        pin(cores)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000)
    count = parser.parse_args().count
    print(f"{'microseconds':58}{'median':>9}{'p90':>9}{'p99':>9}  reader asleep")
    alone(count)
    for apart in (True, False) if len(available_cores()) > 1 else (False,):
        for products in PRODUCTS:
            for way, seen in one_way(count // 10 if products < 80 else count // 50, products, apart).items():
                what = f"one way, {'two cores' if apart else 'one core'}, {products} products before, spin {1e6 * way:g}"
                work = f", work {statistics.median(seen.work):.1f}" if products else ""
                show(what, seen.ways, f"  {100 * seen.woken / len(seen.ways):.0f} %{work}")


if __name__ == "__main__":
    main()
