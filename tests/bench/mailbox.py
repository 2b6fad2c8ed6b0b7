"""What one message costs: publish, look, read, and the way to another process and back.

    python tests/bench/mailbox.py [--count 20000]

Run it on a machine that does nothing else. Printed: median and 99th percentile in microseconds.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from specbench.measure.sensors.clock import now
from specbench.processes.mailbox import DONE, SharedSlot
from specbench.processes.placement import available_cores, pin


def echo(inbox: SharedSlot, outbox: SharedSlot, spin_seconds: float, cores: tuple[int, ...]) -> None:
    """Answer every message at once, until one says DONE."""
    pin(cores)
    inbox.SPIN_SECONDS = spin_seconds  # type: ignore[misc]
    seen = 0
    while True:
        while not inbox.wait(seen, 1.0):
            pass
        message = inbox.read(0)
        seen = message.version
        if message.flag == DONE:
            return
        outbox.publish(0, message.epoch, 0, message.tokens)


def timed(action: Callable[[], object], count: int) -> list[float]:
    """Microseconds of each call."""
    durations = []
    for _ in range(count):
        start = now()
        action()
        durations.append(1e6 * (now() - start))
    return durations


def show(what: str, durations: list[float]) -> None:
    ordered = sorted(durations)
    print(f"{what:58}{statistics.median(ordered):8.2f}{ordered[int(0.99 * len(ordered))]:8.2f}")


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


def there_and_back(count: int, spin_seconds: float) -> list[float]:
    there, back = SharedSlot(8), SharedSlot(8)
    back.SPIN_SECONDS = spin_seconds  # type: ignore[misc]
    cores = available_cores()
    child = multiprocessing.get_context("spawn").Process(target=echo, args=(there, back, spin_seconds, cores[-1:]), daemon=True)
    child.start()
    pin(cores[:1])
    try:
        durations = []
        for number in range(count + 200):
            seen = back.version()
            start = now()
            there.publish(0, number, 0, [number])
            while not back.wait(seen, 1.0):
                assert child.is_alive()
            back.read(0)
            durations.append(1e6 * (now() - start))
    finally:
        there.publish(0, 0, 0, [], flag=DONE)
        child.join()
        pin(cores)
    return durations[200:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000)
    count = parser.parse_args().count
    print(f"{'microseconds':58}{'median':>8}{'p99':>8}")
    alone(count)
    for spin_seconds in (0.0, SharedSlot.SPIN_SECONDS, 1e-3):
        durations = there_and_back(count // 10, spin_seconds)
        show(f"to another process and back, spinning up to {1e6 * spin_seconds:g} us", durations)


if __name__ == "__main__":
    main()
