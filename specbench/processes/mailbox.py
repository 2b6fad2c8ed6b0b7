"""The versioned mailbox between two processes that decode one sequence together.

Two slots, each written by one side only: the target's *committed* (its committed output tokens) and the draft's *drafts* (the
output sequence as the draft sees it: committed tokens first, its own drafts behind). A slot is a growing token list that can be
cut and overwritten, tagged with the sample's number and an epoch. Readers keep a cursor and copy only what is new. The version
counts every change, so a reader knows at the cost of one integer whether there is news.

`LocalSlot` holds a slot in plain memory, so that a seeded scheduler can interleave both sides in one process;
`SharedSlot` is the same over shared memory with a doorbell. A reader that has nothing to do sleeps at the doorbell.
"""

from __future__ import annotations

import platform
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from specbench.measure.sensors.clock import now
from specbench.processes.shared import Doorbell, SharedArray, fence, give_way, sleep_at
from specbench.processes.silence import Silence

# Cells of a slot's header; _VERSION follows _BEGUN when a message is whole.
_VERSION, _BEGUN, _REQUEST, _EPOCH, _LENGTH, _FLAG, _WAITING, _HEADER = 0, 1, 2, 3, 4, 5, 6, 8

AWAY_SECONDS = 1e-4  # a core given away comes back at once where nobody wants it, else after a turn of milliseconds
SHARED_SECONDS = 0.1  # for so long it is taken for shared then

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


class Inbox(Protocol):
    """What a reader sleeps at."""

    def version(self) -> int:
        """Changes with every publish; cheap enough to poll."""

    def wait(self, seen_version: int, timeout_seconds: float) -> bool:
        """Sleep until the version differs from `seen_version` or the time is up; whether there is news."""


class Slot(Inbox, Protocol):
    """One direction of a mailbox."""

    def publish(self, request: int, epoch: int, keep: int, tokens: Sequence[int], flag: int = OPEN) -> None:
        """Keep the first `keep` tokens, put `tokens` behind them, and ring."""

    def read(self, start: int) -> Message:
        """The state now and the tokens from `start` on (none if the slot is shorter)."""


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

    There is no lock that a side could die with. The writer counts a message when it begins and again when it is whole; a reader
    whose copy lies between two equal counts has a whole one, else it copies again (a sequence lock). The reader says that it
    sleeps before it looks for the last time, the writer looks for sleepers behind its message, so no wake-up is lost.
    Spinning before sleeping saves the wake-up's latency and happens only while a sample is on the clock: see `_wait`.
    """

    SPIN_SECONDS = 5e-3
    MIDWAY_SECONDS = 5.0  # within a message, which takes microseconds
    FENCED = platform.machine() not in ("x86_64", "AMD64")  # there stores are seen in order anyway, and loads made in order

    def __init__(self, capacity: int):
        self.capacity = capacity
        self._array, self._bell = SharedArray("q", _HEADER + capacity), Doorbell()
        self.spun_for = -1  # the version behind which the reader has spun for news
        self.sleeps_until = 0.0  # another wanted its core
        self._attach()

    def _attach(self) -> None:
        self._cells = self._array.cells
        self._tokens = self._cells[_HEADER:]

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_cells", "_tokens")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._attach()

    @property
    def nbytes(self) -> int:
        return self._cells.nbytes

    @property
    def has_sleeper(self) -> bool:
        """Whether the reader is at the doorbell, or on its way there."""
        return bool(self._cells[_WAITING])

    def publish(self, request: int, epoch: int, keep: int, tokens: Sequence[int], flag: int = OPEN) -> None:
        """An interrupt within leaves the reader waiting for the next message, which is whole again if it keeps nothing."""
        cells, end = self._cells, keep + len(tokens)
        assert end <= self.capacity, f"mailbox of {self.capacity} tokens asked for {end}"
        assert keep <= cells[_LENGTH], f"keeps {keep} of {cells[_LENGTH]} tokens"
        version = cells[_VERSION] + 1
        cells[_BEGUN] = version
        if self.FENCED:
            fence()
        if len(tokens) == 1:  # most messages; a slice costs more
            self._tokens[keep] = tokens[0]
        elif tokens:
            self._tokens[keep:end] = array("q", tokens)
        cells[_REQUEST], cells[_EPOCH], cells[_LENGTH], cells[_FLAG] = request, epoch, end, flag
        if self.FENCED:
            fence()
        cells[_VERSION] = version
        fence()
        if cells[_WAITING]:
            self._bell.ring()

    def version(self) -> int:
        return int(self._cells[_VERSION])

    def read(self, start: int) -> Message:
        cells, silence = self._cells, None
        while True:
            version = cells[_VERSION]
            if self.FENCED:
                fence()
            request, epoch, length, flag = cells[_REQUEST], cells[_EPOCH], cells[_LENGTH], cells[_FLAG]
            first = start if start < length else length
            tokens = [self._tokens[first]] if length - first == 1 else self._tokens[first:length].tolist()
            if self.FENCED:
                fence()
            if cells[_BEGUN] == version:
                return Message(version, request, epoch, flag, first, tokens)
            silence = silence or Silence(self.MIDWAY_SECONDS)
            if silence.too_long():
                raise PeerLost(f"the other process has been within a message for {self.MIDWAY_SECONDS:g} s")
            time.sleep(0)

    def wait(self, seen_version: int, timeout_seconds: float) -> bool:
        return _wait((self,), self.version, seen_version, timeout_seconds)

    def expects(self, waiting: bool) -> None:
        """The reader sleeps from now on, or is awake."""
        self._cells[_WAITING] = waiting

    @property
    def bell(self) -> Doorbell:
        return self._bell


def _wait(slots: Sequence[SharedSlot], version: Callable[[], int], seen_version: int, timeout_seconds: float) -> bool:
    """The reader's sleep at one slot or several, whose versions together are `version`.

    It spins first, once for each news, and gives its core away at every look: where another has use for it, that is seen
    by how long it was away, and for a while the reader only sleeps. So spinning costs nobody who computes.
    """
    if version() != seen_version:
        return True
    looked, first = now(), slots[0]
    end = looked + timeout_seconds
    spins = first.spun_for != seen_version and looked > first.sleeps_until
    spin_until = looked + min(timeout_seconds, first.SPIN_SECONDS if spins else 0.0)
    first.spun_for = seen_version
    while looked < spin_until:
        give_way()
        if version() != seen_version:
            return True
        before, looked = looked, now()
        if looked - before > AWAY_SECONDS:
            first.sleeps_until = looked + SHARED_SECONDS
            break
    bells = [slot.bell for slot in slots]
    for slot in slots:
        slot.expects(True)
        slot.bell.silence()  # of a message that was seen without it
    fence()
    while version() == seen_version and (left := end - now()) > 0 and sleep_at(bells, left):
        for bell in bells:
            bell.silence()
    for slot in slots:
        slot.expects(False)
    return version() != seen_version


class Either:
    """News of any of several slots with one reader, to sleep at: its version is the sum of theirs."""

    def __init__(self, *slots: Any):
        self.slots = slots

    def version(self) -> int:
        return sum(slot.version() for slot in self.slots)

    def wait(self, seen_version: int, timeout_seconds: float) -> bool:
        if all(isinstance(slot, SharedSlot) for slot in self.slots):
            return _wait(self.slots, self.version, seen_version, timeout_seconds)
        return self.version() != seen_version


@dataclass
class Mailbox:
    """Both directions. `committed`: target to draft; `drafts`: draft to target."""

    committed: Slot
    drafts: Slot

    @classmethod
    def local(cls) -> Mailbox:
        return cls(LocalSlot(), LocalSlot())

    @classmethod
    def shared(cls, capacity: int) -> Mailbox:
        """For sequences of at most `capacity` output tokens (drafts included)."""
        return cls(SharedSlot(capacity), SharedSlot(capacity))

    @property
    def nbytes(self) -> int:
        return sum(getattr(slot, "nbytes", 0) for slot in (self.committed, self.drafts))


def sleep_until_news(slot: Inbox, seen_version: int, check: Callable[[], None], timeout_seconds: float) -> float:
    """Wait for a change of `slot`, calling `check()` every 50 ms (it raises when the other side is gone).

    Returns the seconds waited. Raises PeerLost after `timeout_seconds` without news (see `Silence`).
    """
    start, silence = now(), Silence(timeout_seconds)
    while not slot.wait(seen_version, 0.05):
        check()
        if silence.too_long():
            raise PeerLost(f"no news from the other process for {timeout_seconds:g} s (engine.timeout_seconds)")
        if isinstance(slot, LocalSlot):
            time.sleep(0)
    return now() - start
