"""The virtual clock: processes that are charged what they compute, and mailboxes whose messages take their time.

A discrete-event engine for the house's own schedules. One process, *home*, is the caller: the real schedule runs in it as ever,
and time moves when it computes a forward or waits. The others are real step functions, and step when their turn comes. What a
forward takes depends on what the others do meanwhile: from one event to the next it advances at the price of its company
(processor sharing). Nothing here is drawn: the same costs give the same events.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from specbench.processes.mailbox import OPEN, Either, LocalSlot, Mailbox, Message, PeerLost
from specbench.processes.placement import Placement
from specbench.processes.steps import Order, Progress
from specbench.processes.worker import WorkerError
from specbench.sim.costs import Link

CELL_BYTES = 8  # of a mailbox: a token or a word of the header
HEADER_CELLS = 8


@dataclass
class Work:
    """A forward. rows: new tokens; price: its seconds while others are at work on so many rows each (0: one that waits)."""

    rows: int
    price: Callable[[Sequence[int]], float]
    left: float = 1.0


class Process:
    """One process of the simulated machine. busy_seconds: computing. lead: how far its own clock is ahead within a step."""

    def __init__(self, name: str, number: int):
        self.name, self.number = name, number
        self.busy_seconds = self.lead = 0.0
        self.side: Any = None  # what it steps through; None: nothing, or it is the caller's
        self.work: deque[Work] = deque()
        self.idle_since: float | None = None

    def ready_at(self, now: float) -> float:
        """When it takes its next step; infinity while it computes, or nothing is under way to it."""
        if self.side is None or self.work:
            return math.inf
        return now if self.idle_since is None else max(now, news_at(self.side.inbox, self.side.seen_version))


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
        self.time = 0.0

    def now(self) -> float:
        """Of the process at work: behind a forward of this step it is told when that will end if nothing changes beside it."""
        return self.time + self.current.lead

    def charge(self, work: Work) -> None:
        """The process at work computes. The caller's is done when this returns, another's begins behind its step."""
        process = self.current
        process.work.append(work)
        if process is not self.home:
            process.lead += work.price(self._beside(process))
            return
        while process.work:
            self._go_on(math.inf)

    def _beside(self, process: Process) -> list[int]:
        """What the others compute now: rows of their forwards, 0 of one that waits."""
        return [other.work[0].rows if other.work else 0 for other in self.processes if other is not process]

    # The other processes.

    def catch_up(self) -> None:
        """All others do what they have to do by now."""
        assert not self.current.lead, f"{self.current.name} looks or speaks behind a forward of the same step"
        while self.current is self.home and (one := self._next()) is not None and one.ready_at(self.time) <= self.time:
            self.step(one)

    def _next(self) -> Process | None:
        """Who steps next; of several at once the one that was started first."""
        others = [process for process in self.processes[1:] if process.ready_at(self.time) < math.inf]
        return min(others, key=lambda process: (process.ready_at(self.time), process.number), default=None)

    def _go_on(self, limit: float) -> None:
        """To the next event, or to the time `limit`: a step, or the end of a forward. Raises PeerLost where none can come.

        Until then everybody's company is what it is, so a forward advances by its price beside this company.
        """
        one = self._next()
        at = one.ready_at(self.time) if one is not None else math.inf
        if one is not None and at <= self.time:
            self.step(one)
            return
        working = [process for process in self.processes if process.work]
        prices = [process.work[0].price(self._beside(process)) for process in working]
        ends = [self.time + process.work[0].left * price for process, price in zip(working, prices, strict=True)]
        to = min([limit, at, *ends])
        if to == math.inf:
            raise PeerLost(f"all {len(self.processes)} simulated processes wait for ever")
        passed = to - self.time
        for process, price, end in zip(working, prices, ends, strict=True):
            process.busy_seconds += passed
            process.work[0].left -= passed / price
            if end == to:
                process.work.popleft()
        self.time = to

    def step(self, process: Process) -> None:
        """One step of its side."""
        before, self.current = self.current, process
        if process.idle_since is not None:
            process.side.waited(self.time - process.idle_since)
            process.idle_since = None
        try:
            progress = process.side.step()
        finally:
            self.current, process.lead = before, 0.0
        if progress is Progress.FINISHED:
            process.side = None
        elif progress is Progress.IDLE:
            process.idle_since = self.time

    def wait_for(self, slot: SimSlot, seen_version: int) -> None:
        """The caller's process waits for news. Raises PeerLost when none can come."""
        assert self.current is self.home, f"{self.current.name} waits inside a step"
        self.catch_up()
        while (arrival := news_at(slot, seen_version)) > self.time:
            self._go_on(arrival)

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
        self.last_arrival = max(self.last_arrival, self.world.time + seconds)
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
        while self._under_way and self._under_way[0][0] <= self.world.time:
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
        before, self.world.current = self.world.current, self.process
        try:
            self.program.prepare(order)
        finally:  # what is computed before a clock runs is charged to nobody
            self.world.current, self.process.lead = before, 0.0
            self.process.work.clear()

    def go(self) -> None:
        process = self.process
        process.idle_since, self._answer = None, None
        if isinstance(self.order, Order):
            process.side = self.program
            return
        # Another order of the program's own (to measure itself, say): it talks with nobody, so it is played at once, beside a
        # target at work, and takes its time while the target goes on.
        before, self.world.current = self.world.current, process
        ahead, self.world.home.work = self.world.home.work, deque([Work(1, lambda beside: 0.0)])
        try:
            self._answer = self.program.run()
        finally:
            seconds, rows = process.lead, process.work[-1].rows if process.work else 1
            self.world.current, self.world.home.work, process.lead = before, ahead, 0.0
            process.work = deque([Work(rows, lambda beside: seconds)] if seconds else [])

    def result(self) -> Any:
        """The report; what is left of the sample there is done first."""
        while self.process.side is not None or self.process.work:
            self.world._go_on(math.inf)
        if self._answer is None:
            self.program.step = lambda: Progress.FINISHED  # all is done: what its run does behind the last step is left
            try:
                return self.program.run()
            finally:
                del self.program.step
        return self._answer

    def check(self) -> None:
        """It lives as long as the simulation."""

    def memory_bytes(self) -> dict[str, int]:
        return {}

    def lost(self, why: str) -> NoReturn:
        raise WorkerError(f"worker {self.process.name}: {why}")

    def close(self) -> None:
        self.process.side = None
