"""What the sides of two-process schedules share: the draft's (`Drafting`) and the target's, which decides (`Deciding`).

Both are a `Program`'s or a `Side`'s step functions over a mailbox: every step is the method that `_next` holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from specbench.engine.sampling import SamplingLaw
from specbench.engine.target import open_session
from specbench.engine.tree import DraftTree, Verdict
from specbench.measure.sensors.clock import now
from specbench.parts.contracts import Stop
from specbench.parts.drafts.choice import at_once
from specbench.parts.rules.rule import Rule
from specbench.parts.schedules.books import Books
from specbench.parts.schedules.calibration import Calibration, forward_timer
from specbench.processes.mailbox import DONE, OPEN, Mailbox
from specbench.processes.steps import Order, Progress, drive


@dataclass
class SideReport:
    """What the draft's process did during one sample; the durations do not overlap.

    draft_seconds: for tokens that stand in the output. idle_seconds: waits for verdicts. spans: (start, end, what) on the
    machine's monotonic clock, with trace.
    """

    num_forwards: int = 0
    prefill_seconds: float = 0.0
    draft_seconds: float = 0.0
    discarded_seconds: float = 0.0
    idle_seconds: float = 0.0
    spans: list[tuple[float, float, str]] = field(default_factory=list)


class Drafting:
    """The draft's side. A `Program` for `processes.worker.Worker` and a `Side`."""

    report: SideReport
    calibration: Callable[[], float] | None = None  # what `run` measures instead of decoding
    tokens_at_once = 1  # of a program that drafts, where the session can: what a calibration times
    _next: Callable[[], Progress]

    def __init__(self, mailbox: Mailbox, law: SamplingLaw, trace: bool, stop: Stop | None):
        self.inbox, self.drafts = mailbox.committed, mailbox.drafts
        self.law, self.trace = law, trace
        self.stop_policy = stop if stop is not None else Stop()

    def open(self, model: Any) -> None:
        self.session: Any = open_session(model)

    def begin(self, order: Order, room: int, then: Callable[[], Progress]) -> None:
        """A new sample. room: cache rows behind prompt and output; then: the step behind the prefill."""
        self.order, self.request, self._then = order, order.request, then
        self.session.start(len(self.request.prompt_ids) + self.request.max_new_tokens + room)
        self.tokens: list[int] = []  # the output as this side sees it: committed tokens, then own drafts
        self.published = 0  # so many of them stand in the drafts slot as they are here
        self.seen_version = -1
        self.stop_policy.begin(self.request)
        self._next = self._prefill

    def prepare(self, order: Any) -> None:
        """A sample to come, or a `Calibration`."""
        self.calibration = None
        if isinstance(order, Calibration):
            self.calibration = forward_timer(self.session, order, 0 if self.stop_policy.looks else self.tokens_at_once)
        else:
            self.ready(order)

    def ready(self, order: Any) -> None:
        """A sample to come: forget the last one, and `begin`."""
        raise NotImplementedError

    def run(self) -> Any:
        """The report of a sample, or the seconds per forward of a calibration."""
        if self.calibration is not None:
            return self.calibration()
        # No limit to the wait: a target may think for long, and a dead one takes this process with it.
        drive(self, lambda: None, float("inf"))
        return self.report

    def waited(self, seconds: float) -> None:
        self.report.idle_seconds += seconds
        if self.trace:
            end = now()
            self.report.spans.append((end - seconds, end, "idle"))

    def step(self) -> Progress:
        return self._next()

    def at_once(self, ids: Sequence[int], length: int, position: int, law: SamplingLaw) -> list[int] | None:
        """`length` tokens behind ids that are fed first, as one program and with one wait for the device; up to an EOS, behind
        which nothing is drafted here. The last of them is not fed. None where the session cannot, or a stop looks at each."""
        if self.stop_policy.looks:
            return None
        found = at_once(self.session, ids, length, law, position, self.request.noise_key)
        if found is None:
            return None
        tokens = list(found)
        ends = next((count for count, token in enumerate(tokens, 1) if token in self.request.eos_ids), length)
        if ends < length:
            self.session.rollback(self.session.length - (length - ends))
        return tokens[:ends]

    def _prefill(self) -> Progress:
        start = now()
        self.prompt_logits = self.session.feed(self.request.prompt_ids, last_only=True)
        self.report.prefill_seconds = now() - start
        self._next = self._then
        return Progress.WORKED


class Deciding:
    """The target's side, the authority, which keeps the books. A `Side`; one for all samples of a run."""

    rule: Rule
    _next: Callable[[], Progress]

    def __init__(self, mailbox: Mailbox, law: SamplingLaw, session: Any):
        self.committed, self.inbox = mailbox.committed, mailbox.drafts
        self.law, self.session = law, session

    def begin(self, order: Order, room: int, then: Callable[[], Progress]) -> None:
        """As the draft's side's."""
        self.order, self.request, self._then = order, order.request, then
        self.session.start(len(self.request.prompt_ids) + self.request.max_new_tokens + room)
        self.books = Books(self.request)
        self.epoch = 0  # what was drafted and contradicted so far
        self.seen_version = -1
        self._next = self._prefill

    def step(self) -> Progress:
        return self._next()

    def waited(self, seconds: float) -> None:
        self.books.add("wait", seconds)

    def judged(self, tree: DraftTree) -> Verdict:
        """The verdict on a draft, and what it cost booked."""
        start = now()
        evidence = self.rule.ask(self.session, tree, self.law, self.books.position, self.request.noise_key)
        verdict = self.rule.judge(tree, evidence, self.law, self.books.position, self.request.noise_key, None)
        self.books.add("verify", now() - start)
        return verdict

    def stop(self) -> None:
        """End the sample here, whatever happened, so that the draft stops too and is ready for the next."""
        self.committed.publish(self.order.number, self.epoch, 0, self.books.output, flag=DONE)

    def _prefill(self) -> Progress:
        self.books.start()
        first = self.law.choose(self.session.prefill(self.request.prompt_ids).logits, [0], self.request.noise_key)[0]
        self.session.pending = first
        self.books.first(first)
        self.committed.publish(self.order.number, 0, 0, self.books.output, flag=DONE if self.books.finished else OPEN)
        self.books.decode()
        self._next = self._then
        return Progress.FINISHED if self.books.finished else Progress.WORKED
