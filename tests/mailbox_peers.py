"""What the other process does in the tests of the mailbox: functions that a spawned child can import without test libraries."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence

from specbench.processes.mailbox import _BEGUN, DONE, SharedSlot


def signed(number: int, length: int) -> list[int]:
    """`length` tokens of which the last is a checksum of the others: a mixture of two messages does not add up."""
    rng = random.Random(number * 1000 + length)
    body = [rng.randrange(1 << 40) for _ in range(length - 1)]
    return [*body, checksum(body, number)]


def checksum(body: Sequence[int], number: int) -> int:
    return (sum((i + 1) * token for i, token in enumerate(body)) + number * 7919) % (1 << 61)


def hammer(slot: SharedSlot, count: int, longest: int) -> None:
    """Publish `count` signed messages of changing length as fast as possible, the number as epoch; then DONE."""
    rng = random.Random(1)
    for number in range(1, count + 1):
        slot.publish(number % 5, number, 0, signed(number, rng.randrange(1, longest + 1)))
    slot.publish(0, count + 1, 0, signed(count + 1, 1), flag=DONE)


def woken(slot: SharedSlot, seen: int, timeout_seconds: float) -> bool:
    """Wait for news; False when it took until the time was up: then there was none, or its ring was lost."""
    start = time.monotonic()
    return slot.wait(seen, timeout_seconds) and time.monotonic() - start < 0.9 * timeout_seconds


def echo(inbox: SharedSlot, outbox: SharedSlot, spin_seconds: float) -> None:
    """Answer every message with its epoch, sleeping in between, until one says DONE. A wait that fails is told as epoch -1."""
    inbox.SPIN_SECONDS = spin_seconds  # type: ignore[misc]
    rng = random.Random(2)
    seen = 0
    while True:
        if not woken(inbox, seen, 20.0):
            outbox.publish(0, -1, 0, [])
            return
        message = inbox.read(0)
        seen = message.version
        if message.flag == DONE:
            return
        if rng.random() < 0.3:
            time.sleep(rng.random() * 2e-4)  # so that either side is sometimes the one that is asleep
        outbox.publish(0, message.epoch, 0, message.tokens)


def begin_and_die(slot: SharedSlot) -> None:
    """Begin a message and end within it, as a process killed there does."""
    begin_message(slot)
    os._exit(9)


def begin_message(slot: SharedSlot) -> None:
    slot._cells[_BEGUN] += 1
