"""The virtual clock: processes that are charged what they compute, and mailboxes whose messages take their time.

A discrete-event engine for the house's own schedules. One process, *home*, is the caller: the real schedule runs in it as ever,
and its clock moves when a simulated session charges a forward. The others are real step functions with clocks of their own.
Processes meet at mailboxes alone, so they need not move together: whoever looks into a mailbox first lets all others catch up
to its own time (conservative parallel simulation: Chandy and Misra 1979), and who waits gives its time to the others until a
message arrives. Nothing here is drawn: the same costs give the same events.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from specbench.processes.mailbox import OPEN, Either, LocalSlot, Mailbox, Message, PeerLost
from specbench.processes.placement import Placement
from specbench.processes.steps import Order, Progress
from specbench.processes.worker import WorkerError
from specbench.sim.costs import Link

CELL_BYTES = 8  # of a mailbox: a token or a word of the header
HEADER_CELLS = 8


class Process:
    """One process of the simulated machine. time: how far it has come. busy_seconds: of it, computing."""

    def __init__(self, name: str, number: int):
        self.name, self.number = name, number
        self.time = 0.0
        self.busy_seconds = 0.0
        self.side: Any = None  # what it steps through; None: nothing, or it is the caller's
        self.idle_since: float | None = None

    def ready_at(self) -> float:
        """When it can go on; infinity while nothing is under way to it."""
        if self.side is None:
            return math.inf
        if self.idle_since is None:
            return self.time
        return max(self.time, news_at(self.side.inbox, self.side.seen_version))


def news_at(inbox: SimSlot | Either, seen_version: int) -> float:
    """When a reader that has seen this version finds another: at once (0), at an arrival, or (infinity) not yet.

    A stage in the middle of a chain reads two slots, whose versions it adds up.
    """
    slots = inbox.slots if isinstance(inbox, Either) else (inbox,)
    if sum(slot.arrived for slot in slots) != seen_version:
        return 0.0
    return min(slot.next_arrival for slot in slots)


class World:
    """Time, processes and links of one simulated machine; `processes.machine.Machine`'s interface for schedules.

    link: between any two processes. Create one per method.
    """

    def __init__(self, link: Link | None = None):
        self.link = link if link is not None else Link()
        self.home = Process("target", 0)
        self.processes = [self.home]
        self.current = self.home

    def now(self) -> float:
        return self.current.time

    def charge(self, seconds: float) -> None:
        """The process at work computes for so long."""
        self.current.time += seconds
        self.current.busy_seconds += seconds

    # The other processes.

    def catch_up(self) -> None:
        """All others do what they do up to the time of the process at work."""
        if self.current is not self.home:
            return  # it is the one that is furthest behind, or it would not be at work
        while (one := self._next()) is not None and one.ready_at() <= self.home.time:
            self.step(one)

    def _next(self) -> Process | None:
        """Who goes on first; of several at once the one that was started first."""
        waiting = [process for process in self.processes[1:] if process.ready_at() < math.inf]
        return min(waiting, key=lambda process: (process.ready_at(), process.number), default=None)

    def step(self, process: Process) -> None:
        """One step of its side, from when it can go on."""
        start, before = process.ready_at(), self.current
        if process.idle_since is not None:
            process.side.waited(start - process.idle_since)
            process.idle_since = None
        process.time, self.current = start, process
        try:
            progress = process.side.step()
        finally:
            self.current = before
        if progress is Progress.FINISHED:
            process.side = None
        elif progress is Progress.IDLE:
            process.idle_since = process.time

    def wait_for(self, slot: SimSlot, seen_version: int) -> None:
        """The caller's process waits for news. Raises PeerLost when none can come."""
        assert self.current is self.home, f"{self.current.name} waits inside a step"
        self.catch_up()
        while (arrival := news_at(slot, seen_version)) > self.home.time:
            one = self._next()
            if one is not None and one.ready_at() < arrival:
                self.step(one)
            elif arrival < math.inf:
                self.home.time = arrival
            else:
                raise PeerLost(f"all {len(self.processes)} simulated processes wait for ever")

    # What a schedule asks of a machine.

    def mailbox(self, capacity: int) -> Mailbox:
        return Mailbox(SimSlot(self, capacity), SimSlot(self, capacity))

    def split(self, target_device: str, draft_device: str, draft_cores: int, num_drafts: int = 1) -> tuple[Placement, ...]:
        """Costs say who has which cores: here none is pinned, and forwards keep their threads."""
        from specbench.engine import threads

        here = Placement((), threads.count())
        return (here,) * (1 + num_drafts)

    def worker(
        self, role: str, load: Callable[[], Any], program: Any, placement: Placement, timeout_seconds: float
    ) -> SimWorker:
        process = Process(role, len(self.processes))
        self.processes.append(process)
        return SimWorker(self, process, load(), program)


class SimSlot(LocalSlot):
    """A mailbox slot whose messages are under way for the link's time, one behind the other."""

    def __init__(self, world: World, capacity: int):
        super().__init__()
        self.world, self.capacity = world, capacity
        self._under_way: list[tuple[float, tuple[int, int, int, Sequence[int], int]]] = []
        self.last_arrival = 0.0

    def publish(self, request: int, epoch: int, keep: int, tokens: Sequence[int], flag: int = OPEN) -> None:
        assert keep + len(tokens) <= self.capacity, f"mailbox of {self.capacity} tokens asked for {keep + len(tokens)}"
        self.world.catch_up()
        seconds = self.world.link.seconds(CELL_BYTES * (HEADER_CELLS + len(tokens)))
        self.last_arrival = max(self.last_arrival, self.world.now() + seconds)
        self._under_way.append((self.last_arrival, (request, epoch, keep, tuple(tokens), flag)))

    @property
    def arrived(self) -> int:
        """The version that its reader has come by."""
        return self._state.version

    @property
    def next_arrival(self) -> float:
        return self._under_way[0][0] if self._under_way else math.inf

    def _arrive(self) -> None:
        self.world.catch_up()
        while self._under_way and self._under_way[0][0] <= self.world.now():
            _, message = self._under_way.pop(0)
            super().publish(*message)

    def version(self) -> int:
        self._arrive()
        return super().version()

    def read(self, start: int) -> Message:
        self._arrive()
        return super().read(start)

    def wait(self, seen_version: int, timeout_seconds: float) -> bool:
        self.world.wait_for(self, seen_version)
        self._arrive()
        return True


class SimWorker:
    """`processes.worker.Worker`'s interface over a simulated process."""

    pid = None

    def __init__(self, world: World, process: Process, model: Any, program: Any):
        self.world, self.process, self.model, self.program = world, process, model, program
        self._answer: Any = None
        program.open(model)

    def prepare(self, order: Any) -> None:
        self.order = order
        self.program.prepare(order)

    def go(self) -> None:
        process = self.process
        process.time, process.idle_since, self._answer = self.world.now(), None, None
        if isinstance(self.order, Order):
            process.side = self.program
            return
        # Another order of the program's own (to measure itself, say): it talks with nobody, so it may be done at once.
        before, self.world.current = self.world.current, process
        try:
            self._answer = self.program.run()
        finally:
            self.world.current = before

    def result(self) -> Any:
        """The report; what is left of the sample there is done first."""
        while self.process.side is not None:
            one = self.world._next()
            if one is None:
                raise WorkerError(f"worker {self.process.name} waits for ever")
            self.world.step(one)
        if self._answer is None:
            self.program.step = lambda: Progress.FINISHED  # all is done: what its run does behind the last step is left
            try:
                return self.program.run()
            finally:
                del self.program.step
        self.world.home.time = max(self.world.home.time, self.process.time)
        return self._answer

    def check(self) -> None:
        """It lives as long as the simulation."""

    def memory_bytes(self) -> dict[str, int]:
        return {}

    def lost(self, why: str) -> NoReturn:
        raise WorkerError(f"worker {self.process.name}: {why}")

    def close(self) -> None:
        self.process.side = None
