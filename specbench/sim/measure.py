"""This machine's costs for one pair: forwards as a round makes them, alone, in turns with the draft, and beside it.

A target's forward is timed with the verdict and what is kept of it, a draft's with the choice of its token, each behind a
context and in the company that it has in a run: cache and bandwidth belong to whoever was there last. The median counts.
"""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from specbench.config.say import say
from specbench.config.schema import RunConfig
from specbench.config.specs import PairSpec
from specbench.engine.sampling import SamplingLaw
from specbench.engine.target import open_session, open_target
from specbench.engine.tree import DraftTree, Verdict
from specbench.measure.records import provenance
from specbench.measure.records.jsonfile import write_atomically
from specbench.measure.sensors.clock import clock_for, now
from specbench.pair.backend import choose_backend
from specbench.pair.load import check_pair, draft_loader, load_model, load_tokenizer
from specbench.pair.spec import specify
from specbench.parts.rules.rule import RULES
from specbench.processes.mailbox import DONE, Mailbox
from specbench.processes.placement import Placement, available_cores, split
from specbench.processes.worker import Worker
from specbench.run.arms import thread_candidates
from specbench.sim.costs import ALONE, BESIDE, TURNS
from specbench.sim.hardware import FORMAT, names_of
from specbench.sim.options import SimConfig

DRAFT_ROWS = (1, 2, 4, 8, 16, 32)  # ssd grows that many branches at once
CHAIN = 4  # draft forwards in a row, as a round has them
PREFILL_ROWS = (8, 32, 128, 512, 1024)
MIN_TURNS, WARM_TURNS = 5, 1
PINGS = 400
GREEDY = SamplingLaw()

Step = Callable[[], float]
"""Do it once; the seconds that count."""


class Forwards:
    """Timed forwards of one model behind several contexts, each on a session of its own."""

    def __init__(self, model: Any, contexts: Sequence[int], room: int, is_target: bool):
        self.model, self.clock, self.is_target = model, clock_for(str(model.device)), is_target
        length = model.context_length
        self.contexts = [c for c in contexts if length is None or c + room <= length] or [max(1, (length or 2 * room) - room)]
        self.sessions: dict[int, Any] = {}
        for context in self.contexts:
            self.sessions[context] = session = open_target(model) if is_target else open_session(model)
            session.start(context + room + CHAIN)
            session.feed(self.ids(context), last_only=True)

    def ids(self, count: int, start: int = 0) -> list[int]:
        return [(37 * (start + i) + 11) % self.model.vocab_size for i in range(count)]

    def timed(self, action: Callable[[], Any]) -> float:
        self.clock.synchronize()
        stamps = [self.clock.stamp()]
        action()
        stamps.append(self.clock.stamp())
        return self.clock.seconds(stamps)[1]

    def verify(self, rows: int, context: int) -> float:
        """A target's round: forward over pending and drafts, verdict, what is kept."""
        session, tree = self.sessions[context], DraftTree(self.ids(rows - 1, context))
        session.pending = self.ids(1)[0]

        def round_() -> None:
            evidence = session.forward(tree)
            RULES["greedy_match"].judge(tree, evidence, GREEDY, 1, 0, None)
            session.commit(Verdict((), (session.pending,)))

        seconds = self.timed(round_)
        session.rollback(context)
        return seconds

    def draft(self, rows: int, context: int) -> float:
        """A draft forward: of more than one row by itself, of one row the mean of a chain."""
        session, count = self.sessions[context], CHAIN if rows == 1 else 1

        def chain() -> None:
            for number in range(count):
                logits = session.feed(self.ids(rows, context + number), last_only=True)
                GREEDY.choose(logits, [number + 1], 0)

        seconds = self.timed(chain)
        session.rollback(context)
        return seconds / count

    def step(self, rows: int, context: int) -> float:
        return self.verify(rows, context) if self.is_target else self.draft(rows, context)

    def prefill(self) -> list[list[float]]:
        """Points of whole prompts, on sessions of their own."""
        length, session = self.model.context_length, open_target(self.model) if self.is_target else open_session(self.model)
        points = []
        for rows in (r for r in PREFILL_ROWS if length is None or r <= length):
            times = []
            for _ in range(4):
                session.start(rows)
                times.append(self.timed(lambda rows=rows: session.feed(self.ids(rows), last_only=True).argmax(-1).tolist()))  # type: ignore[misc]
            points.append([rows, 0, 1, statistics.median(times[1:])])
        return points


def measured(
    forwards: Forwards, rows: Sequence[int], seconds: float, before: Callable[[int], Any] = lambda context: None
) -> Any:
    """Points [rows, context, 1, seconds] for about so long. before: what was there last, called with the context, not timed.

    Every turn does every point once, in an order of its own: the speed of a machine drifts.
    """
    places = [(r, c) for r in rows for c in forwards.contexts]
    times: dict[tuple[int, int], list[float]] = {place: [] for place in places}
    draw, start, turn = random.Random(0), now(), 0
    while turn < MIN_TURNS + WARM_TURNS or now() - start < seconds:
        for place in draw.sample(places, len(places)):
            before(place[1])
            spent = forwards.step(*place)
            if turn >= WARM_TURNS:
                times[place].append(spent)
        turn += 1
    return [[r, c, 1, statistics.median(values)] for (r, c), values in times.items()]


@dataclass(frozen=True)
class Ask:
    """An order to the draft's process: measure for so long, or (0) answer messages."""

    seconds: float


class Probe:
    """A `Program` that measures the draft in its own process, or answers messages until one says DONE."""

    def __init__(self, mailbox: Mailbox, contexts: Sequence[int]):
        self.mailbox, self.contexts = mailbox, contexts

    def open(self, model: Any) -> None:
        self.forwards = Forwards(model, self.contexts, max(DRAFT_ROWS), is_target=False)

    def prepare(self, order: Ask) -> None:
        self.order = order
        self.seen = self.mailbox.committed.version()  # now: the first message may be there before `run` is

    def run(self) -> Any:
        if self.order.seconds:
            return measured(self.forwards, DRAFT_ROWS, self.order.seconds)
        inbox, seen = self.mailbox.committed, self.seen
        while True:
            while not inbox.wait(seen, 1.0):
                pass
            message = inbox.read(0)
            seen = message.version
            if message.flag == DONE:
                return None
            self.mailbox.drafts.publish(0, message.epoch, 0, message.tokens)


def message_seconds(mailbox: Mailbox, worker: Worker) -> float:
    """Half of a message's way there and back, the median."""
    worker.prepare(Ask(0.0))
    worker.go()
    times, seen = [], mailbox.drafts.version()
    for _ in range(PINGS):
        start = now()
        mailbox.committed.publish(0, 0, 0, [1, 2])
        while not mailbox.drafts.wait(seen, 1.0):
            worker.check()
        seen = mailbox.drafts.read(0).version
        times.append(now() - start)
    mailbox.committed.publish(0, 0, 0, [], flag=DONE)
    worker.result()
    return statistics.median(times) / 2


@contextmanager
def placed(threads: int) -> Iterator[None]:
    with Placement(available_cores(), threads).applied():
        yield


def fastest(device: str, configured: int | None, seconds_of: Callable[[], float]) -> int:
    """The thread count with which something takes least, as a run's warm-up chooses it."""
    found = {}
    for count in thread_candidates(device, configured):
        with placed(count):
            seconds_of()
            found[count] = statistics.median(seconds_of() for _ in range(7))
    return min(found, key=lambda count: found[count])


def measure(options: SimConfig, config: RunConfig) -> Path:
    """Measure and write `options.out`. Raises ConfigError for a pair without a draft or with a part that cannot be cut back."""
    pair = specify(config.pair, config.engine.attention)
    pair, instead = choose_backend(check_pair(pair, load_tokenizer(pair.target)), config.engine.backend)
    if instead is not None:
        say(instead)
    path = Path(options.out if options.out.endswith(".json") else f"{options.out}.json")
    found = measure_pair(options, config, pair)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(found, indent=1) + "\n")
    return path


def measure_pair(options: SimConfig, config: RunConfig, pair: PairSpec) -> dict[str, Any]:
    """The contents of a file of costs."""
    say(f"measuring {pair.name} for about {options.seconds:g} s: nothing else should run")
    device, room = pair.target.device, max(options.rows)
    target = Forwards(load_model(pair.target, pair.vocab_size), options.contexts, room, is_target=True)
    share, first = options.seconds / 5, target.contexts[0]
    curves: list[dict[str, Any]] = []
    threads: dict[str, int] = {}

    def add(role: str, mode: str, points: Any) -> None:
        curves.append({"role": role, "mode": mode, "points": points})

    threads[ALONE] = fastest(device, config.engine.threads, lambda: target.verify(1, first))
    with placed(threads[ALONE]):
        add("target", ALONE, measured(target, options.rows, share))
        prefill = {"target": target.prefill()}
    link, num_devices = {"latency_seconds": 0.0}, 1
    if pair.draft is not None:
        draft = Forwards(load_model(pair.draft, pair.draft_vocab_size), options.contexts, max(DRAFT_ROWS), is_target=False)
        own = draft.contexts

        def near(context: int) -> int:
            return min(own, key=lambda c: abs(c - context))

        threads[TURNS] = fastest(
            device, config.engine.threads, lambda: CHAIN * draft.draft(1, near(first)) + target.verify(CHAIN + 1, first)
        )
        with placed(threads[TURNS]):
            add("target", TURNS, measured(target, options.rows, share, lambda context: draft.draft(1, near(context))))
            add("draft", TURNS, measured(draft, DRAFT_ROWS, share, lambda context: target.verify(CHAIN + 1, first)))
            prefill["draft"] = draft.prefill()
        del draft
        mailbox = Mailbox.shared(8)
        here, there = split(device, pair.draft.device, 1)
        threads[BESIDE] = here.threads
        worker = Worker("draft", draft_loader(pair), Probe(mailbox, options.contexts), there, config.engine.timeout_seconds)  # type: ignore[arg-type]
        try:
            with here.applied():
                worker.prepare(Ask(share))
                worker.go()
                add("target", BESIDE, measured(target, options.rows, share))
                add("draft", BESIDE, worker.result())
                link["latency_seconds"] = message_seconds(mailbox, worker)
        finally:
            worker.close()
        num_devices = len({device, pair.draft.device})
    facts = provenance.collect()
    machine = {name: facts["machine"].get(name) for name in ("cpu_model", "logical_cores")}
    gpus = [gpu.get("name") for gpu in facts["gpus"]] if device.startswith("cuda") else []
    return {
        "format_version": FORMAT,
        "label": ", ".join(gpus) or str(machine["cpu_model"] or "this machine"),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine,
        "pair": {"name": pair.name, **names_of(pair)},
        "threads": threads,
        "num_devices": num_devices,
        "link": link,
        "prefill": prefill,
        "curves": curves,
    }
