"""What ends a command from outside: Ctrl-C, and like it what batch systems, `kill` and closed terminals send."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker
from types import FrameType

AGAIN_SECONDS = 5.0  # senders like to repeat themselves: what comes sooner would only interrupt the cleaning up


class Terminated(KeyboardInterrupt):
    """SIGTERM, or SIGHUP; the exit status is `status`, a shell's for a command that was ended so."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


def interruption(error: KeyboardInterrupt) -> tuple[str, int]:
    """What is said of a command that was ended from outside, and its exit status."""
    return ("interrupted", 130) if not isinstance(error, Terminated) else (f"interrupted by {error}", error.status)


@contextlib.contextmanager
def terminated() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise Terminated in the main thread, unless they are ignored (nohup); a worker's own fate is
    its parent's affair."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    last = -AGAIN_SECONDS

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before >= AGAIN_SECONDS:
            raise Terminated(number)

    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in (getattr(signal, name) for name in names)}
    taken = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    for number in taken:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def without_interrupts() -> Iterator[None]:
    """A child that is started in here inherits a blocked SIGINT: Ctrl-C during its start would otherwise print its traceback
    over the parent's words.

    Nothing is lost: an interrupt that comes in between reaches the parent at the end.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # Starting the tracker unblocks the signal as a side effect: it must be there before.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
