"""What one message costs: publish, look, read, and the way to another process and back.

    python tests/bench/messages.py [--count 20000]

Run it on a machine that does nothing else. Printed, in microseconds: median, 90th and 99th percentile. The ways of waiting
(spin for ever, spin and then sleep at the doorbell, doorbell alone) take turns, a quarter of the messages each time, so
that all see one machine; with each, how many messages found the reader asleep. One way is
from before the writer's publish to behind the reader's wait, by the clock that all processes of a machine share; the goal is
20 microseconds.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path

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


WAYS = {"spin": 1e9, "spin, then doorbell": SharedSlot.SPIN_SECONDS, "doorbell": 0.0}
PAUSES_SECONDS = (0.0, 2e-4, 2e-3)  # between an answer and the next message: what the reader sleeps through


def one_way(count: int, pause_seconds: float) -> dict[str, tuple[list[float], int]]:
    """By way of waiting: microseconds of `count` messages, and how many of them had to wake the reader."""
    cores, context = available_cores(), multiprocessing.get_context("spawn")
    pairs = {way: (SharedSlot(8), SharedSlot(8)) for way in WAYS}
    found: dict[str, tuple[list[float], int]] = {way: ([], 0) for way in WAYS}
    pin(cores[:1])
    try:
        for way in [way for _ in range(4) for way in WAYS]:  # in turns: each sees the machine at four times
            there, back = pairs[way]
            arguments = (there, back, WAYS[way], cores[-1:])
            child = context.Process(target=echo, args=arguments, daemon=True)
            child.start()
            durations, woken = found[way]
            for number in range(-20, count // 4):
                until = now() + pause_seconds
                while now() < until:
                    pass
                asleep, seen, start = there.has_sleeper, back.version(), now()
                there.publish(0, 0, 0, [number + 20])
                while not back.wait(seen, 1.0):
                    assert child.is_alive()
                arrived = 1e-9 * back.read(0).tokens[0]
                if number >= 0:
                    durations.append(1e6 * (arrived - start))
                    woken += asleep
            found[way] = (durations, woken)
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
    for pause in PAUSES_SECONDS:
        for way, (durations, woken) in one_way(count // 10, pause).items():
            what = f"one way, {1e3 * pause:g} ms after the last: {way}"
            show(what, durations, f"  {100 * woken / len(durations):.0f} %")


if __name__ == "__main__":
    main()
