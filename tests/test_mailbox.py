"""The mailbox: shared memory means what plain memory means, nothing is torn, no wake-up is lost, nobody spins."""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mailbox_peers
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specbench.parts.schedules.lockstep.rows import RowBuffer
from specbench.processes import mailbox
from specbench.processes.mailbox import DONE, Either, LocalSlot, Mailbox, PeerLost, SharedSlot, sleep_until_news

CAPACITY = 24
SPAWN = multiprocessing.get_context("spawn")


# ------------------------------------------------------------------------------------------------ meaning
@st.composite
def histories(draw: st.DrawFn) -> list[tuple[Any, ...]]:
    """Publishes that grow, cut and overwrite, and reads from cursors that may lie behind the end."""
    operations: list[tuple[Any, ...]] = []
    length = 0
    for _ in range(draw(st.integers(1, 12))):
        if draw(st.booleans()):
            keep = draw(st.integers(0, length))
            tokens = draw(st.lists(st.integers(0, 2**60), max_size=CAPACITY - keep))
            operations.append(
                ("publish", draw(st.integers(0, 3)), draw(st.integers(0, 9)), keep, tokens, draw(st.integers(0, 9)))
            )
            length = keep + len(tokens)
        else:
            operations.append(("read", draw(st.integers(0, CAPACITY + 3))))
    return operations


SHARED = SharedSlot(CAPACITY)


@settings(max_examples=200, deadline=None)
@given(histories())
def test_shared_means_what_local_means(operations: list[tuple[Any, ...]]) -> None:
    local, shared = LocalSlot(), SHARED
    shared.publish(-1, 0, 0, [])
    offset = shared.version()
    for name, *arguments in operations:
        results = []
        for slot in (local, shared):
            if name == "publish":
                sample, epoch, keep, tokens, flag = arguments
                slot.publish(sample, epoch, keep, tokens, flag=flag)
            message = slot.read(0 if name == "publish" else arguments[0])
            base = offset if slot is shared else 0
            assert slot.version() == message.version
            assert slot.wait(message.version - 1, 0.0) and message.length == message.start + len(message.tokens)
            said = (message.request, message.epoch, message.flag, message.start, message.tokens)
            results.append((message.version - base, *said))
        assert results[0] == results[1]


@pytest.mark.parametrize("slot", [LocalSlot(), SharedSlot(8)], ids=["local", "shared"])
def test_a_cursor_reads_only_what_is_new(slot: Any) -> None:
    slot.publish(1, 0, 0, [10, 11, 12])
    slot.publish(1, 0, 3, [13])
    assert slot.read(3).tokens == [13]
    assert slot.read(3).start == 3
    slot.publish(1, 1, 2, [22, 23])  # cut at 2 and overwritten
    assert slot.read(0).tokens == [10, 11, 22, 23]
    slot.publish(1, 2, 1, [])  # cut only
    message = slot.read(4)
    assert (message.start, message.tokens, message.length) == (1, [], 1)
    slot.publish(2, 0, 0, [7])
    assert slot.read(0).tokens == [7]


@pytest.mark.parametrize("slot", [LocalSlot(), SharedSlot(8)], ids=["local", "shared"])
def test_a_gap_is_refused(slot: Any) -> None:
    """Keeping more than there is would pass on whatever an earlier sample left there."""
    slot.publish(1, 0, 0, [1, 2, 3])
    slot.publish(1, 0, 1, [])
    with pytest.raises(AssertionError, match="keeps 2 of 1"):
        slot.publish(1, 0, 2, [5])
    slot.publish(1, 0, 1, [9])  # and the slot is as usable as before
    assert slot.read(0).tokens == [1, 9]


def test_more_than_the_capacity_is_refused_and_the_lock_is_free() -> None:
    slot = SharedSlot(4)
    slot.publish(1, 0, 0, [1, 2, 3, 4])
    with pytest.raises(AssertionError, match="mailbox of 4 tokens asked for 5"):
        slot.publish(1, 0, 4, [5])
    assert slot.read(0).tokens == [1, 2, 3, 4]


def test_it_is_as_large_as_it_says_and_stays_so() -> None:
    box = Mailbox.shared(100)
    before = box.nbytes
    assert 2 * 100 * 8 <= before <= 2 * 100 * 8 + 256
    for number in range(500):
        box.drafts.publish(number, 0, 0, list(range(number % 100)))
    assert box.nbytes == before
    assert Mailbox.local().nbytes == 0


# ------------------------------------------------------------------------------------------------ sleeping and waking
def test_waiting_ends_with_news_and_with_the_time() -> None:
    slot = SharedSlot(4)
    seen = slot.version()
    assert not slot.wait(seen, 0.02)
    timer = threading.Timer(0.1, slot.publish, (1, 0, 0, [1]))
    timer.start()
    assert slot.wait(seen, 30.0)
    timer.join()
    assert slot.wait(seen, 0.0), "news that came before the wait"


@pytest.mark.parametrize("which", [0, 1])
def test_news_of_either_slot_wakes_their_reader(which: int) -> None:
    slots = (SharedSlot(4), SharedSlot(4))
    either = Either(*slots)
    seen = either.version()
    start = time.perf_counter()
    assert not either.wait(seen, 0.05) and time.perf_counter() - start >= 0.04, "it did not sleep"
    timer = threading.Timer(0.1, slots[which].publish, (1, 0, 0, [1]))
    timer.start()
    assert either.wait(seen, 30.0)
    timer.join()
    assert time.perf_counter() - start < 20.0, "only the time woke it"
    assert either.version() == seen + 1 and not either.wait(seen + 1, 0.0)
    local = Either(LocalSlot(), LocalSlot())
    local.slots[which].publish(1, 0, 0, [1])
    assert local.version() == 1 and local.wait(0, 0.0) and not local.wait(1, 0.0)


def test_rings_do_not_pile_up() -> None:
    """A reader that looks by itself leaves no ring behind that would end a later sleep."""
    slot = SharedSlot(4)
    for number in range(200):
        slot.publish(number, 0, 0, [])
    assert not slot.wait(slot.version(), 0.0)
    assert not slot._bell.sleep(0.0)
    start = time.perf_counter()
    assert not slot.wait(slot.version(), 0.05)
    assert time.perf_counter() - start >= 0.04, "it did not sleep"


def cpu_of_waiting(slot: SharedSlot, forgets: bool = False) -> float:
    before = time.thread_time()
    for _ in range(10):
        if forgets:
            slot.spun_for, slot.sleeps_until = -1, 0.0
        slot.wait(slot.version(), 0.05)
    return time.thread_time() - before


def test_a_sleeping_reader_burns_no_cpu() -> None:
    assert cpu_of_waiting(SharedSlot(4)) < 0.02


def test_a_spinning_reader_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    slot = SharedSlot(4)
    slot.SPIN_SECONDS = 0.05  # type: ignore[misc]
    monkeypatch.setattr(mailbox, "give_way", lambda: None)
    monkeypatch.setattr(mailbox, "AWAY_SECONDS", 1.0)
    assert cpu_of_waiting(slot, forgets=True) > 0.02


def test_a_reader_spins_once_for_each_news_and_not_on_a_core_that_another_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    slot, looks, away = SharedSlot(4), [], [0.0]

    def give_way() -> None:
        looks.append(1)
        time.sleep(away[0])

    def looked(seconds: float) -> int:
        before = len(looks)
        assert not slot.wait(slot.version(), seconds)
        return len(looks) - before

    monkeypatch.setattr(mailbox, "give_way", give_way)
    monkeypatch.setattr(mailbox, "AWAY_SECONDS", 0.05)  # more than a busy machine takes a core away
    slot.SPIN_SECONDS = 0.02  # type: ignore[misc]
    assert looked(0.05) > 3 and looked(0.05) == 0, "slept for what it has spun for"
    slot.publish(1, 0, 0, [1])
    assert looked(0.05) > 3
    slot.publish(1, 0, 1, [2])
    away[0] = 0.06
    assert looked(0.3) == 1, "it went on spinning although another wanted its core"
    slot.publish(1, 0, 2, [3])
    slot.sleeps_until = time.perf_counter() + 5.0
    assert looked(0.01) == 0


def test_sleep_until_news_asks_after_the_peer_and_gives_up() -> None:
    slot, asked = SharedSlot(4), []
    with pytest.raises(PeerLost, match=r"no news from the other process for 0\.2 s"):
        sleep_until_news(slot, slot.version(), lambda: asked.append(1), 0.2)
    assert len(asked) >= 2

    def gone() -> None:
        raise RuntimeError("died of old age")

    with pytest.raises(RuntimeError, match="old age"):
        sleep_until_news(slot, slot.version(), gone, 60.0)
    seen = slot.version()
    slot.publish(1, 0, 0, [])
    assert sleep_until_news(slot, seen, gone, 60.0) < 1.0, "with news there is no question"


# ------------------------------------------------------------------------------------------------ two processes
@pytest.mark.parametrize("fenced", [False, True])
def test_two_processes_never_read_a_torn_message(fenced: bool) -> None:
    if not (fenced or not SharedSlot.FENCED):
        pytest.skip("this machine needs the fences")
    count, longest = 12000, 40
    slot = SharedSlot(longest)
    slot.FENCED, slot.SPIN_SECONDS = fenced, 0.0  # type: ignore[misc]
    child = SPAWN.Process(target=mailbox_peers.hammer, args=(slot, count, longest), daemon=True)
    child.start()
    reads, epochs, rng = 0, [0], random.Random(3)
    while True:
        message = slot.read(0)
        if message.request >= 0 and message.tokens:
            *body, sign = message.tokens
            assert sign == mailbox_peers.checksum(body, message.epoch), "torn"
            assert message.version >= epochs[-1]
            epochs.append(message.epoch)
            reads += 1
        if message.flag == DONE:
            break
        slot.wait(message.version, 1.0)
        if rng.random() < 0.05:
            time.sleep(1e-4)
        assert child.is_alive() or slot.read(0).flag == DONE, "the writer died"
    child.join(10)
    assert child.exitcode == 0
    assert epochs == sorted(epochs)
    assert reads > 100 and len(set(epochs)) > 100, "the two hardly met"


def test_a_checksum_sees_a_mixture() -> None:
    """The twin: half of one message and half of another do not add up."""
    one, two = mailbox_peers.signed(1, 20), mailbox_peers.signed(2, 20)
    for cut in range(1, 20):
        *body, sign = [*one[:cut], *two[cut:]]
        assert sign != mailbox_peers.checksum(body, 1) or cut == 19
        assert sign != mailbox_peers.checksum(body, 2)


def test_no_wake_up_is_lost_between_two_processes() -> None:
    """Two thousand times there and back, both sides asleep by turns: a lost ring would leave one asleep beside its news."""
    there, back = SharedSlot(8), SharedSlot(8)
    back.SPIN_SECONDS = 0.0  # type: ignore[misc]
    child = SPAWN.Process(target=mailbox_peers.echo, args=(there, back, 0.0), daemon=True)
    child.start()
    rng = random.Random(4)
    try:
        for number in range(1, 2001):
            if number == 1000:
                back.SPIN_SECONDS = SharedSlot.SPIN_SECONDS  # type: ignore[misc]
            seen = back.version()
            there.publish(0, number, 0, [number])
            if rng.random() < 0.3:
                time.sleep(rng.random() * 2e-4)
            assert mailbox_peers.woken(back, seen, 20.0), f"message {number}: asleep although there was an answer"
            message = back.read(0)
            assert (message.epoch, message.tokens) == (number, [number])
    finally:
        there.publish(0, 0, 0, [], flag=DONE)
        child.join(10)
    assert child.exitcode == 0


def test_a_lost_ring_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: a writer that forgets to ring leaves the reader asleep until its time is up."""
    slot = SharedSlot(8)
    slot.SPIN_SECONDS = 0.0  # type: ignore[misc]
    monkeypatch.setattr(slot._bell, "ring", lambda: None)
    seen = slot.version()
    timer = threading.Timer(0.05, slot.publish, (1, 0, 0, [1]))
    timer.start()
    assert not mailbox_peers.woken(slot, seen, 0.3)
    timer.join()
    assert slot.version() != seen


def test_a_late_ring_does_not_shorten_a_sleep() -> None:
    """A writer that is held up between its message and the ring rings for what was read long ago."""
    slot = SharedSlot(8)
    timer = threading.Timer(0.05, slot._bell.ring)
    timer.start()
    start = time.monotonic()
    assert not slot.wait(slot.version(), 0.2)
    assert time.monotonic() - start > 0.19
    timer.join()


def test_a_peer_that_died_within_a_message_is_reported() -> None:
    slot = SharedSlot(4)
    slot.MIDWAY_SECONDS = 0.2  # type: ignore[misc]
    child = SPAWN.Process(target=mailbox_peers.begin_and_die, args=(slot,), daemon=True)
    child.start()
    child.join(30)
    assert child.exitcode == 9
    with pytest.raises(PeerLost, match=r"within a message for 0\.2 s"):
        slot.read(0)
    slot.publish(1, 0, 0, [5])  # whoever writes next
    assert slot.read(0).tokens == [5]


class Interrupt(BaseException):
    """What Ctrl-C raises wherever it comes."""


def interrupted(slot: SharedSlot, after: int, use: Any) -> bool:
    """Call `use`, interrupted before the `after`th line that the slot executes; False if it has fewer.

    In a thread of its own: what a trace function raises inside a handler stays in its thread as the exception being handled.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_interrupted, after, use).result()


def _interrupted(after: int, use: Any) -> bool:
    lines = 0

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal lines
        if frame.f_globals["__name__"].startswith("specbench.processes"):
            lines += event == "line"
            if lines == after:
                raise Interrupt
        return trace

    sys.settrace(trace)
    try:
        use()
    except Interrupt:
        return True
    finally:
        sys.settrace(None)
    return False


@pytest.mark.parametrize("fenced", [False, True])
def test_an_interrupt_anywhere_leaves_a_usable_mailbox(fenced: bool) -> None:
    """Ctrl-C between any two lines: what is published and read next is whole, and at once."""
    slot = SharedSlot(8)
    slot.FENCED, slot.MIDWAY_SECONDS, slot.SPIN_SECONDS = fenced, 0.2, 0.0  # type: ignore[misc]
    slot.publish(1, 0, 0, [1, 2])
    uses = {
        "publish one": lambda: slot.publish(2, 1, 2, [3]),
        "publish two": lambda: slot.publish(2, 1, 0, [3, 4]),
        "read": lambda: slot.read(0),
        "wait": lambda: slot.wait(slot.version(), 0.001),
    }
    for name, use in uses.items():
        after = 1
        while interrupted(slot, after, use):
            start, seen = time.monotonic(), slot.version()
            slot.publish(3, 4, 0, [7, 8, 9])
            assert slot.wait(seen, 0.0), name
            message = slot.read(1)
            assert (message.request, message.epoch, message.tokens) == (3, 4, [8, 9]), f"{name}, line {after}"
            assert time.monotonic() - start < 0.1
            assert not slot.wait(message.version, 0.0)
            after += 1
        assert after > 3, f"{name}: no line was seen"


# ------------------------------------------------------------------------------------------------ nothing left behind
def names_of_memory() -> set[str]:
    """Whatever has a name and lives in memory: semaphores and shared memory of this host."""
    return {str(entry) for place in ("/dev/shm", "/dev/mqueue") for entry in Path(place).glob("*")}


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="named semaphores are no files here")
def test_a_mailbox_has_no_name_and_its_descriptors_go_with_it() -> None:
    before, open_before = names_of_memory(), len(os.listdir("/proc/self/fd"))
    box, rows = Mailbox.shared(8), RowBuffer(2, 3)
    assert names_of_memory() <= before
    assert len(os.listdir("/proc/self/fd")) > open_before
    named = SPAWN.Semaphore()  # the twin: these would be seen
    assert names_of_memory() - before
    del box, rows, named
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_the_mailbox_needs_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, specbench.processes.mailbox; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ}, check=False).returncode == 0
