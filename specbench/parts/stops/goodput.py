"""The length with most tokens per second, 0 included (SmartSpec, Liu et al. 2406.14066: goodput).

`best_length` is the formula, for one request or a batch that drafts one length. The stop takes the cost of a round from
measurement on this machine, of whole rounds of some lengths (no linear model is fitted), and acceptance from the verdicts of
the pass so far. Of the paper: the objective, that 0 is a length, the moving estimate. Ours: acceptance is
accepted / (accepted + rounds with a rejection), the maximum likelihood of a run of equal chances cut at the first failure, so
that drafts of any length tell the same; its counts halve in every `half_life` judged tokens; before the first verdict all that
is allowed is drafted; and since a plain round tells nothing, after `probe_every` of them one token is drafted.
"""

from __future__ import annotations

from collections.abc import Sequence

from specbench.config.options import ConfigError, whole
from specbench.engine.session import Session
from specbench.engine.tree import MOST_KEPT
from specbench.measure.theory.formulas import emitted_sequential
from specbench.parts.contracts import Drafter, Needs, Setting, Stop
from specbench.parts.shapes.cost import MAX_NODES, measure_rounds
from specbench.parts.shapes.static import never_falling, seconds_of_rows

LENGTHS = (0, 1, 2, 4, 8, 16, 32)  # that are measured, beside the longest; between two lies a straight line


def best_length(acceptances: Sequence[float], round_seconds: Sequence[float]) -> int:
    """The length that emits most tokens per second, all requests of a batch drafting as many; of equals the shortest.

    acceptances: by request. round_seconds[k]: of the batch's whole round with k drafted tokens each, above 0.
    """
    return max(
        range(len(round_seconds)),
        key=lambda k: (sum(emitted_sequential(chance, k) for chance in acceptances) / round_seconds[k], -k),
    )


class Goodput(Stop):
    """half_life: judged tokens after which a verdict counts half. probe_every: plain rounds after which one token is drafted.

    What it knows lasts for a pass over the prompts. Raises ConfigError (method.stop) for drafts that are no chains or whose
    length is not what they cost, and for a target whose rounds cannot be timed by going back.
    """

    needs = Needs(scope="session")

    def __init__(self, *, draft_length: int | None = None, half_life: int = 64, probe_every: int = 16):
        whole("method.stop.half_life", half_life, 1, high=MOST_KEPT)
        whole("method.stop.probe_every", probe_every, 1, high=MOST_KEPT)
        super().__init__(draft_length)
        self.half_life, self.probe_every = half_life, probe_every
        self.reset()

    def join(self, drafter: Drafter) -> None:
        if drafter.form != "chain" or type(drafter).rehearsal is Drafter.rehearsal:
            remedy = f"weighs what each length of a chain costs, and this draft is a {drafter.form}: use fixed or heuristic"
            raise ConfigError("method.stop", "goodput", remedy)
        self.drafter = drafter

    def open(self, setting: Setting) -> None:
        self.target = setting.target
        if not isinstance(self.target, Session):
            raise ConfigError("method.stop", "goodput", "times rounds by going back, which this target cannot: use fixed")
        self.settle()

    def settle(self) -> None:
        assert self.draft_length is not None
        longest = min(self.draft_length, MAX_NODES)
        lengths = [*(length for length in LENGTHS if length < longest), longest]
        draft = self.drafter.rehearsal(longest)
        assert draft is not None, "looked at when they joined"
        measured = measure_rounds(self.target, [lambda length=length: draft(length) for length in lengths])  # type: ignore[misc]
        self.measured = dict(zip(lengths, never_falling(measured), strict=True))
        self.round_seconds = [seconds_of_rows(self.measured, length) for length in range(1 + longest)]

    def reset(self) -> None:
        self.accepted = self.rejected = 0.0
        self.num_plain = 0

    @property
    def acceptance(self) -> float | None:
        """Estimated chance of a drafted token; None before the first verdict."""
        judged = self.accepted + self.rejected
        return self.accepted / judged if judged else None

    def budget(self, room: int) -> int:
        longest = min(room, len(self.round_seconds) - 1)
        if self.acceptance is None:
            return longest
        best = best_length([self.acceptance], self.round_seconds[: 1 + longest])
        return best or int(longest > 0 and self.num_plain >= self.probe_every)

    def learn(self, num_drafted: int, num_accepted: int) -> None:
        if not num_drafted:
            self.num_plain += 1
            return
        self.num_plain = 0
        rejected = int(num_accepted < num_drafted)
        kept = 0.5 ** ((num_accepted + rejected) / self.half_life)
        self.accepted = kept * self.accepted + num_accepted
        self.rejected = kept * self.rejected + rejected

    def facts(self) -> dict[str, float | int | str]:
        costs: dict[str, float | int | str] = {f"round_seconds_of_length_{k}": cost for k, cost in self.measured.items()}
        return costs if self.acceptance is None else {**costs, "acceptance": round(self.acceptance, 4)}
