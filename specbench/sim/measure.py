"""This machine's costs for one pair: forwards as a round makes them, alone, in turns with the draft, and beside it.

A target's forward is timed with the verdict and what is kept of it, a draft's with the choice of its token, each behind a
context and in the company that it has in a run: cache, bandwidth and cores belong to whoever was there last, or is there now.
All company takes turns, for a machine's speed drifts within seconds and speed-ups are ratios. The median counts.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from specbench.config.say import say
from specbench.config.schema import RunConfig
from specbench.config.specs import PairSpec
from specbench.measure.records import provenance
from specbench.measure.records.jsonfile import write_atomically
from specbench.measure.sensors.clock import now
from specbench.method import Method, create_method
from specbench.pair.backend import choose_backend
from specbench.pair.load import check_pair, draft_loader, load_model, load_tokenizer
from specbench.pair.spec import specify
from specbench.pair.stages import stage_loader
from specbench.processes.mailbox import DONE, Mailbox
from specbench.processes.placement import Placement, available_cores, split
from specbench.processes.worker import Worker
from specbench.run.arms import thread_candidates
from specbench.sim.around import around_forwards, key_of
from specbench.sim.costs import ALONE, BESIDE, COMPANY, TURNS
from specbench.sim.forwards import CHAIN, Forwards, Points
from specbench.sim.hardware import FORMAT, names_of
from specbench.sim.options import SimConfig
from specbench.sim.play import refuse_what_cannot_be_simulated

DRAFT_ROWS = (1, 2, 4, 8, 16, 32)  # ssd grows that many branches at once
ROWS_BESIDE = {f"{BESIDE} {other}": rows for other, rows in zip(COMPANY, ((), (1,), (CHAIN + 1,)), strict=True)}
MIN_TURNS = 6
PINGS = 400


@dataclass(frozen=True)
class Ask:
    """An order to the draft's process, until a message says DONE: forwards of so many rows, or (none) answers to messages.

    beside: in which company; "" where it is company itself, and its times do not count.
    """

    rows: tuple[int, ...]
    beside: str


class Probe:
    """A `Program`: the draft at work in its own process. Between two of its points it looks for a message and sends one."""

    def __init__(self, mailbox: Mailbox, contexts: Sequence[int]):
        self.mailbox, self.contexts = mailbox, contexts
        self.points: dict[Ask, Points] = {}

    def open(self, model: Any) -> None:
        self.forwards = Forwards(model, self.contexts, max(DRAFT_ROWS), is_target=False)

    def prepare(self, order: Ask) -> None:
        self.order = order
        self.seen = self.mailbox.committed.version()  # now: the first message may be there before `run` is

    def run(self) -> list[list[float]]:
        """What was found so far for these rows in this company, in all orders; nothing where it was company itself."""
        rows, inbox = self.order.rows, self.mailbox.committed
        points = self.points.setdefault(self.order, Points(self.forwards, rows))
        while True:
            while inbox.version() == self.seen and not (rows or inbox.wait(self.seen, 1.0)):
                pass
            if inbox.version() != self.seen:
                message = inbox.read(0)
                self.seen = message.version
                if message.flag == DONE:
                    return points.found() if self.order.beside else []
            if rows:
                points.next()
            self.mailbox.drafts.publish(0, 0, 0, [1])


class Neighbour:
    """The draft's process, at work beside what is done within `asked`. found: its points, when the last `asked` is left."""

    def __init__(self, mailbox: Mailbox, worker: Worker, num_contexts: int):
        self.mailbox, self.worker, self.num_contexts = mailbox, worker, num_contexts
        self.found: list[list[float]] = []

    @contextmanager
    def asked(self, *rows: int, beside: str = "") -> Iterator[None]:
        self.worker.prepare(Ask(rows, beside))
        self.worker.go()
        try:
            yield
        finally:
            self.mailbox.committed.publish(0, 0, 0, [], flag=DONE)
            self.found = self.worker.result()

    def tell(self) -> None:
        """A message; if it has nothing else to do it answers, and waits for the next as a schedule's draft does."""
        self.mailbox.committed.publish(0, 0, 0, [1, 2])

    def news(self) -> None:
        """Wait for its next message, as a schedule's target does."""
        seen = self.mailbox.drafts.version()
        while not self.mailbox.drafts.wait(seen, 1.0):
            self.worker.check()

    def turn(self, beside: str, meanwhile: Callable[[], Any]) -> list[list[float]]:
        """Its points, each once more, while something is done here again and again; single rows among their like."""
        points = []
        for rows in (DRAFT_ROWS[:1], DRAFT_ROWS[1:]):
            with self.asked(*rows, beside=beside):
                end = self.mailbox.drafts.version() + len(rows) * self.num_contexts
                while self.mailbox.drafts.version() < end:
                    meanwhile()
                    self.worker.check()
            points += self.found
        return points

    def message_seconds(self) -> float:
        """Half of a message's way there and back, the median."""
        times, seen = [], self.mailbox.drafts.version()
        with self.asked():
            for _ in range(PINGS):
                start = now()
                self.tell()
                while self.mailbox.drafts.version() == seen:
                    self.mailbox.drafts.wait(seen, 1.0)
                seen = self.mailbox.drafts.version()
                times.append(now() - start)
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


def measure(options: SimConfig, config: RunConfig, nodes: Mapping[str, Any]) -> Path:
    """Measure and write `options.out`. nodes: of methods, by name. Raises ConfigError for one that cannot be simulated."""
    pair = specify(config.pair, config.engine.attention)
    pair, instead = choose_backend(check_pair(pair, load_tokenizer(pair.target)), config.engine.backend)
    if instead is not None:
        say(instead)
    path = Path(options.out if options.out.endswith(".json") else f"{options.out}.json")
    methods, stages = dict[str, Method](), dict[str, Callable[[], Any]]()
    for node in nodes.values():
        method = create_method(node)
        refuse_what_cannot_be_simulated(node, method)
        load = stage_loader(pair)
        if load is not None:
            stages |= {name: load(name)[1] for name in method.needs.stages if name != "draft"}
        if len(method.needs.stages) < 2 and (pair.draft is not None or method.needs.draft == "none"):
            methods.setdefault(key_of(method), method)
    found = measure_pair(options, config, pair, methods, stages)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(found, indent=1) + "\n")
    return path


def measure_pair(
    options: SimConfig,
    config: RunConfig,
    pair: PairSpec,
    methods: Mapping[str, Method],
    stages: Mapping[str, Callable[[], Any]],
) -> dict[str, Any]:
    """The contents of a file of costs. methods: by `key_of`, run for what their schedules do around their forwards. stages:
    what loads the further drafts of chains, each measured beside the target alone."""
    say(f"measuring {pair.name} for about {options.seconds:g} s: nothing else should run")
    device, room = pair.target.device, max(options.rows)
    models = {"target": load_model(pair.target, pair.vocab_size)}
    target = Forwards(models["target"], options.contexts, room, is_target=True)
    first = target.contexts[0]
    threads = {ALONE: fastest(device, config.engine.threads, lambda: target.verify(1, first))}
    curves = {("target", ALONE): Points(target, options.rows, lambda context: target.verify(1, context))}  # among their like
    prefill, found = {"target": target}, dict[tuple[str, str], Any]()
    neighbours: dict[str, Neighbour] = {}
    link, num_devices = {"latency_seconds": 0.0}, 1
    with contextlib.ExitStack() as stack:
        if pair.draft is not None:
            models["draft"] = load_model(pair.draft, pair.draft_vocab_size)
            prefill["draft"] = draft = Forwards(models["draft"], options.contexts, max(DRAFT_ROWS), is_target=False)

            def draft_near(context: int) -> float:
                return draft.draft(1, min(draft.contexts, key=lambda c: abs(c - context)))

            threads[TURNS] = fastest(
                device, config.engine.threads, lambda: CHAIN * draft_near(first) + target.verify(CHAIN + 1, first)
            )
            curves |= {
                ("target", TURNS): Points(target, options.rows, draft_near),
                ("draft", TURNS): Points(draft, DRAFT_ROWS, lambda context: target.verify(CHAIN + 1, first)),
                **{("target", mode): Points(target, options.rows, lambda _: beside.tell()) for mode in ROWS_BESIDE},
            }
            here, there = split(device, pair.draft.device, 1)
            threads[BESIDE] = here.threads
            for role, load in {"draft": draft_loader(pair), **stages}.items():
                mailbox = Mailbox.shared(8)
                program = Probe(mailbox, options.contexts)
                worker = Worker(role, load, program, there, config.engine.timeout_seconds)  # type: ignore[arg-type]
                stack.callback(worker.close)
                neighbours[role] = Neighbour(mailbox, worker, len(draft.contexts))
                if role != "draft":
                    prefill[role] = Forwards(load(), options.contexts, max(DRAFT_ROWS), is_target=False)  # type: ignore[misc]
            beside = neighbours["draft"]
            num_devices = len({device, pair.draft.device})
        turns, start = 0, now()
        while turns < MIN_TURNS or now() - start < options.seconds:
            for (_, mode), points in curves.items():
                if mode in threads:
                    with placed(threads[mode]):
                        points.turn()
                    continue
                with here.applied(), beside.asked(*ROWS_BESIDE[mode]):
                    points.turn()
            for (role, one), (mode, rows) in itertools.product(neighbours.items(), ROWS_BESIDE.items()):
                with here.applied():
                    found[role, mode] = one.turn(mode, partial(target.verify, rows[0], first) if rows else one.news)
            turns += 1
        found |= {key: points.found() for key, points in curves.items()}
        with placed(threads[ALONE]):
            prefills = {role: forwards.prefill() for role, forwards in prefill.items()}
        if pair.draft is not None:
            with here.applied():
                link["latency_seconds"] = beside.message_seconds()
    timeout = config.engine.timeout_seconds
    around = {key: around_forwards(method, pair, models, threads, timeout) for key, method in methods.items()}
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
        "prefill": prefills,
        "curves": [{"role": role, "mode": mode, "points": points} for (role, mode), points in found.items()],
        "around": around,
    }
