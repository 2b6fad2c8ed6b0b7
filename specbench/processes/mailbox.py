"""The versioned mailbox between two processes that decode one sequence together.

Two slots, each written by one side only: the target's *committed* (its committed output tokens) and the draft's *drafts* (the
output sequence as the draft sees it: committed tokens first, its own drafts behind). A slot is a growing token list that can be
cut and overwritten, tagged with the sample's number and an epoch. Readers keep a cursor and copy only what is new. The version
counts every change, so a reader knows at the cost of one integer whether there is news.

`LocalSlot` holds a slot in plain memory, so that a seeded scheduler can interleave both sides in one process;
`SharedSlot` is the same over shared memory with a lock and a doorbell. A reader that has nothing to do sleeps at the doorbell.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import synchronize
from typing import Any, Protocol

import numpy as np

from specbench.measure.sensors.clock import now

_VERSION, _REQUEST, _EPOCH, _LENGTH, _FLAG, _WAITING, _HEADER = 0, 1, 2, 3, 4, 5, 8

OPEN, DONE = 0, 1  # flags of the verdict slot


class PeerLost(RuntimeError):
    """The other side of a mailbox died or hangs."""


@dataclass(slots=True)
class Message:
    """What a reader gets: the slot's state and its tokens from `start` to the end."""

    version: int
    request: int
    epoch: int
    flag: int
    start: int
    tokens: list[int]

    @property
    def length(self) -> int:
        return self.start + len(self.tokens)


class Slot(Protocol):
    """One direction of a mailbox."""

    def publish(self, request: int, epoch: int, keep: int, tokens: Sequence[int], flag: int = OPEN) -> None:
        """Keep the first `keep` tokens, put `tokens` behind them, and ring."""

    def version(self) -> int:
        """Changes with every publish; cheap enough to poll."""

    def read(self, start: int) -> Message:
        """The state now and the tokens from `start` on (none if the slot is shorter)."""

    def wait(self, seen_version: int, timeout_seconds: float) -> bool:
        """Sleep until the version differs from `seen_version` or the time is up; whether there is news."""


class LocalSlot:
    """A slot within one process. `wait` never sleeps: the scheduler decides who runs next."""

    def __init__(self) -> None:
        self._state = Message(0, -1, 0, OPEN, 0, [])

    def publish(self, request: int, epoch: int, keep: int, tokens: Sequence[int], flag: int = OPEN) -> None:
        old = self._state
        assert keep <= len(old.tokens), f"keeps {keep} of {len(old.tokens)} tokens"
        self._state = Message(old.version + 1, request, epoch, flag, 0, [*old.tokens[:keep], *tokens])

    def version(self) -> int:
        return self._state.version

    def read(self, start: int) -> Message:
        state = self._state
        start = min(start, len(state.tokens))
        return Message(state.version, state.request, state.epoch, state.flag, start, state.tokens[start:])

    def wait(self, seen_version: int, timeout_seconds: float) -> bool:
        return self._state.version != seen_version


class SharedSlot:
    """A slot in shared memory, for one writer and one reader. Pass it to a spawned process as an argument.

    The lock is held for a copy of a few tokens only. The reader announces that it sleeps under the same lock under which the
    writer looks, so no wake-up is lost; the time-out is a safety net for a peer that died. Short spinning before sleeping saves
    the wake-up's latency and happens only while a sample is on the clock.
    """

    SPIN_SECONDS = 50e-6
    LOCK_SECONDS = 5.0

    def __init__(self, capacity: int, context: Any = None):
        context = context or multiprocessing.get_context("spawn")
        self._memory = context.RawArray("q", _HEADER + capacity)  # an unnamed mapping, inherited by the child
        self._lock: synchronize.Lock = context.Lock()
        self._bell: synchronize.Semaphore = context.Semaphore(0)
        self.capacity = capacity
        self._attach()

    def _attach(self) -> None:
        self._cells = np.frombuffer(self._memory, dtype=np.int64)
        self._tokens = self._cells[_HEADER:]

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_cells", "_tokens")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._attach()

    def _acquire(self) -> None:
        if not self._lock.acquire(timeout=self.LOCK_SECONDS):
            raise PeerLost(f"the other process has held the mailbox for {self.LOCK_SECONDS} s")

    @property
    def nbytes(self) -> int:
        return self._cells.nbytes

    def publish(self, request: int, epoch: int, keep: int, tokens: Sequence[int], flag: int = OPEN) -> None:
        end = keep + len(tokens)
        assert end <= self.capacity, f"mailbox of {self.capacity} tokens asked for {end}"
        cells = self._cells
        self._acquire()
        try:
            assert keep <= cells[_LENGTH], f"keeps {keep} of {cells[_LENGTH]} tokens"
            if tokens:
                self._tokens[keep:end] = tokens
            cells[_REQUEST], cells[_EPOCH], cells[_LENGTH], cells[_FLAG] = request, epoch, end, flag
            cells[_VERSION] += 1
            ring = cells[_WAITING]
            cells[_WAITING] = 0
        finally:
            self._lock.release()
        if ring:
            self._bell.release()

    def version(self) -> int:
        return int(self._cells[_VERSION])

    def read(self, start: int) -> Message:
        self._acquire()
        try:
            version, request, epoch, length, flag = self._cells[:_WAITING].tolist()
            start = min(start, length)
            tokens = self._tokens[start:length].tolist()
        finally:
            self._lock.release()
        return Message(version, request, epoch, flag, start, tokens)

    def wait(self, seen_version: int, timeout_seconds: float) -> bool:
        cells = self._cells
        spin_until = now() + self.SPIN_SECONDS
        while now() < spin_until:
            if cells[_VERSION] != seen_version:
                return True
        self._acquire()
        try:
            if cells[_VERSION] != seen_version:
                return True
            cells[_WAITING] = 1
        finally:
            self._lock.release()
        self._bell.acquire(timeout=timeout_seconds)
        # A ring that came after the time-out is drained here, so that the next sleep is a real one.
        self._acquire()
        try:
            cells[_WAITING] = 0
            while self._bell.acquire(block=False):
                pass
            return bool(cells[_VERSION] != seen_version)
        finally:
            self._lock.release()

    def unlink(self) -> None:
        """Remove the names of lock and doorbell once both sides hold them: a killed run then leaves nothing behind."""
        for primitive in (self._lock, self._bell):
            _unlink_semaphore(primitive)


def _unlink_semaphore(primitive: Any) -> None:
    # multiprocessing has no public call for this; where its insides differ, the names go at exit as usual.
    from multiprocessing import resource_tracker, util

    name = getattr(getattr(primitive, "_semlock", None), "name", None)
    registry = getattr(util, "_finalizer_registry", None)
    if name is None or registry is None:
        return
    for finalizer in [f for f in list(registry.values()) if getattr(f, "_args", None) == (name,)]:
        finalizer.cancel()
        import _multiprocessing

        _multiprocessing.sem_unlink(name)
        resource_tracker.unregister(name, "semaphore")


@dataclass
class Mailbox:
    """Both directions. `committed`: target to draft; `drafts`: draft to target."""

    committed: Slot
    drafts: Slot

    @classmethod
    def local(cls) -> Mailbox:
        return cls(LocalSlot(), LocalSlot())

    @classmethod
    def shared(cls, capacity: int, context: Any = None) -> Mailbox:
        """For sequences of at most `capacity` output tokens (drafts included)."""
        return cls(SharedSlot(capacity, context), SharedSlot(capacity, context))

    @property
    def nbytes(self) -> int:
        return sum(getattr(slot, "nbytes", 0) for slot in (self.committed, self.drafts))

    def unlink(self) -> None:
        for slot in (self.committed, self.drafts):
            if isinstance(slot, SharedSlot):
                slot.unlink()


def sleep_until_news(slot: Slot, seen_version: int, check: Callable[[], None], timeout_seconds: float) -> float:
    """Wait for a change of `slot`, calling `check()` every 50 ms (it raises when the other side is gone).

    Returns the seconds waited. Raises PeerLost after `timeout_seconds` without news.
    """
    start = now()
    while not slot.wait(seen_version, 0.05):
        check()
        if now() - start > timeout_seconds:
            raise PeerLost(f"no news from the other process for {timeout_seconds:g} s (engine.timeout_seconds)")
        if isinstance(slot, LocalSlot):
            time.sleep(0)
    return now() - start
