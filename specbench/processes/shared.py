"""Memory and doorbells that processes share and nobody has to clean up: they have no name, and go with the last who holds them.

Each travels to a child as an argument of its process, and in no other way.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import struct
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from multiprocessing import reduction
from typing import Any


class Descriptor:
    """A file descriptor, closed when nobody refers to it any more."""

    def __init__(self, number: int):
        self.number = number
        weakref.finalize(self, os.close, number)

    def __reduce__(self) -> tuple[Callable[[Any], Descriptor], tuple[Any]]:
        return _inherited, (reduction.DupFd(self.number),)


def _inherited(duplicate: Any) -> Descriptor:
    return Descriptor(duplicate.detach())


class SharedArray:
    """`length` numbers of one type (a code of `struct`), zero at first; `cells` is the view of them."""

    def __init__(self, code: str, length: int, memory: Descriptor | None = None):
        self.code, self.length = code, length
        size = struct.calcsize(code) * length
        self._memory = memory if memory is not None else _nameless(size)
        self.cells = memoryview(mmap.mmap(self._memory.number, size)).cast("B").cast(code)  # type: ignore[call-overload]

    def __reduce__(self) -> tuple[type[SharedArray], tuple[str, int, Descriptor]]:
        return SharedArray, (self.code, self.length, self._memory)


def _nameless(size: int) -> Descriptor:
    if hasattr(os, "memfd_create"):
        memory = Descriptor(os.memfd_create("specbench", os.MFD_CLOEXEC))
    else:
        with tempfile.TemporaryFile() as file:
            memory = Descriptor(os.dup(file.fileno()))
    os.ftruncate(memory.number, size)
    return memory


class Doorbell:
    """One process sleeps at it, the other rings; a ring that nobody waits for stays until it is `silence`d."""

    def __init__(self, ends: tuple[Descriptor, Descriptor] | None = None):
        if ends is None:
            here, there = os.pipe()
            os.set_blocking(here, False)
            os.set_blocking(there, False)
            ends = (Descriptor(here), Descriptor(there))
        self._ends = ends
        self._here, self._there = (end.number for end in ends)
        self._poll = select.poll()
        self._poll.register(self._here, select.POLLIN)

    def __reduce__(self) -> tuple[type[Doorbell], tuple[tuple[Descriptor, Descriptor]]]:
        return Doorbell, (self._ends,)

    def fileno(self) -> int:
        """Readable while it rings."""
        return self._here

    def ring(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it rings already, thousands of times
            os.write(self._there, b"!")

    def sleep(self, seconds: float) -> bool:
        """Until it rings or the time is up (to the millisecond); whether it rang."""
        return bool(self._poll.poll(1e3 * seconds))

    def silence(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self._here, 4096)) == 4096:
                pass


def sleep_at(bells: Sequence[Doorbell], seconds: float) -> bool:
    """Until one of them rings or the time is up; whether one rang."""
    if len(bells) == 1:
        return bells[0].sleep(seconds)
    poll = select.poll()
    for bell in bells:
        poll.register(bell, select.POLLIN)
    return bool(poll.poll(1e3 * seconds))


def fence() -> None:
    """What this thread wrote and read before comes before what it writes and reads after, in every other process's eyes.

    Python has no memory barrier; giving a lock back and taking it again have the two halves of one, in this order. A lock of
    its own: an interrupt leaves nothing locked that anybody would take.
    """
    lock = threading.Lock()
    lock.acquire()
    lock.release()
    lock.acquire()


def give_way() -> None:
    """Whoever else can run on this core may, for a turn."""
    if hasattr(os, "sched_yield"):
        os.sched_yield()
    else:
        time.sleep(0)
