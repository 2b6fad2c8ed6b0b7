"""A model that computes nothing: its next token is read from a text, and each forward is charged what it would have cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from specbench.engine.masks import FULL, MaskPlan
from specbench.engine.model import Model
from specbench.engine.request import Request
from specbench.engine.tree import DraftTree, Evidence, Verdict
from specbench.sim.acceptance import MAX_RANK, Text
from specbench.sim.costs import Company, Curve
from specbench.sim.world import Work

VOCAB_SIZE = 2 * MAX_RANK  # tokens stand for nothing: enough that a draft's list can hold the target's at any rank
EOS = 0
BEHIND = 64  # positions beyond the longest output that a draft may look ahead


class Script:
    """What target and draft say in one text, as logits [positions, VOCAB_SIZE] by output position.

    All depend on the position alone: what a draft says behind a wrong token of its own is thrown away with it. The draft's
    logits fall from its favourite in steps of one, with the target's token at its rank and an EOS of its own nowhere; so do
    those of further drafts of a chain, each of which has a favourite of its own where it is wrong. drafts: of all, in order.
    """

    def __init__(self, text: Text):
        self.text = text
        number = text.limit + BEHIND
        # Small ones: the draft says the ids above them first, and never comes round to the EOS.
        tokens = np.random.default_rng(len(text.right)).integers(1, VOCAB_SIZE - MAX_RANK, number)
        if text.eos:
            tokens[text.length - 1] = EOS
        self.tokens: list[int] = tokens.tolist()
        behind = (np.arange(VOCAB_SIZE) - tokens[:, None]) % VOCAB_SIZE  # 0 at the target's own token
        self.target = torch.from_numpy(np.where(behind == 0, 0.0, -1.0).astype(np.float32))
        self.drafts = []
        for place, ranks in enumerate((text.rank, *([1 if right else 2 for right in stage] for stage in text.behind))):
            rank = np.array([*ranks, *[1] * number][:number])
            further = (behind - place) % VOCAB_SIZE
            scores = np.where(behind == 0, -(rank[:, None] - 0.5), -np.where(further == 0, VOCAB_SIZE, further).astype(float))
            scores[:, EOS] = np.where(tokens == EOS, scores[:, EOS], -2.0 * VOCAB_SIZE)
            self.drafts.append(torch.from_numpy(scores.astype(np.float32)))

    @property
    def request(self) -> Request:
        text = self.text
        prompt = (1,) * text.prompt_length
        limit = text.length if not text.eos else text.limit
        return Request(text.sample_id, text.turn, prompt, limit, frozenset({EOS}), 0)


class Stage:
    """What is on: the script of the sample under way, and the clock's hand. One for all models of a pair."""

    def __init__(self, charge: Callable[[Work], None]):
        self.charge = charge
        self.script: Script | None = None


class SimModel(Model):
    """A `Model` that was never loaded. place: of a draft in its chain; None: the target. costs: `beside` others, a `Company`.
    around_seconds: of the schedule, charged with each forward."""

    def __init__(
        self, place: int | None, stage: Stage, costs: Curve | Company, prefill: Curve, beside: bool, around_seconds: float = 0.0
    ):
        plan = MaskPlan((FULL,), None)
        super().__init__(None, VOCAB_SIZE, plan, True, 1, VOCAB_SIZE, is_draft=place is not None, opens=self.open)
        self.place, self.stage = place, stage
        self.costs, self.prefill_curve, self.beside, self.around_seconds = costs, prefill, beside, around_seconds

    def says(self, script: Script) -> Tensor:
        return script.target if self.place is None else script.drafts[self.place]

    def charge(self, rows: int, past: int) -> None:
        def price(others: Sequence[int]) -> float:
            if not past:
                return self.prefill_curve.seconds(rows, past)
            company: Any = (others,) if self.beside else ()
            return self.costs.seconds(rows, past, *company) + self.around_seconds

        self.stage.charge(Work(rows, price))

    def open(self) -> SimSession:
        return SimSession(self)

    device = torch.device("cpu")
    dtype = torch.float32
    context_length = None
    num_parameters = 0


class SimSession:
    """One sequence on such a model, with the calls of `engine.session.Session`; it knows how much it was fed, and not what."""

    tap_layers: tuple[int, ...] = ()
    can = frozenset({"tree", "logits"})
    nbytes = 0

    def __init__(self, model: SimModel):
        self.model, self.stage = model, model.stage
        self.length = self.capacity = 0
        self.pending: int | None = None
        self._last_start = 0
        self.branch()

    def start(self, capacity: int) -> None:
        self.length, self.capacity, self.pending, self._last_start = 0, capacity, None, 0
        self.branch()

    def warm(self, rows: Sequence[int]) -> None:
        """Nothing is made."""

    def feed(
        self,
        ids: Sequence[int],
        *,
        last_only: bool = False,
        parents: Sequence[int] | None = None,
        depths: Sequence[int] | None = None,
    ) -> Tensor:
        past, rows, model = self.length, len(ids), self.model
        assert rows > 0, "nothing to feed"
        assert past + rows <= self.capacity, f"{past + rows} rows where {self.capacity} were reserved"
        model.charge(rows, past)
        self._last_start, self.length = past, past + rows
        if parents is not None and depths is None:
            depths = []
            for parent in parents:
                depths.append(0 if parent < 0 else depths[parent] + 1)
        script = self.stage.script
        if script is None:  # a calibration: nobody looks at what it says
            return torch.zeros(1 if last_only else rows, VOCAB_SIZE)
        logits, first = model.says(script), past + 1 - script.text.prompt_length
        if depths is None:
            last = max(0, first + rows - 1)
            return logits[last : last + 1] if last_only else logits[max(0, first) : last + 1]
        return logits[[max(0, first + depth) for depth in (depths[-1:] if last_only else depths)]]

    def rollback(self, length: int) -> None:
        assert 0 <= length <= self.length, f"rollback to {length} of {self.length}"
        self.length = length
        self.branch()

    # As `engine.branching.Branching`: rows of a tree behind the sequence.

    def branch(self, trunk: int | None = None) -> None:
        self.trunk = self.length if trunk is None else trunk
        self.row_parents = list(range(-1, self.length - self.trunk - 1))
        self._row_depths = list(range(len(self.row_parents)))

    def grow(self, ids: Sequence[int], parents: Sequence[int]) -> Tensor:
        past, script = self.length, self.stage.script
        assert past == self.trunk + len(self.row_parents), "branch first"
        depths = [0 if parent < 0 else self._row_depths[parent] + 1 for parent in parents]
        self.row_parents += parents
        self._row_depths += depths
        self.model.charge(len(ids), past)
        self.length = past + len(ids)
        if script is None:
            return torch.zeros(len(ids), VOCAB_SIZE)
        first = self.trunk + 1 - script.text.prompt_length
        return self.model.says(script)[[max(0, first + depth) for depth in depths]]

    def keep(self, rows: Sequence[int]) -> None:
        self.rollback(self.trunk + len(rows))

    def prefill(self, prompt_ids: Sequence[int]) -> Evidence:
        return Evidence(self.feed(prompt_ids, last_only=True), {})

    def forward(self, tree: DraftTree) -> Evidence:
        assert self.pending is not None, "prefill first"
        assert tree.riders is None and not tree.start_layer, "a simulated target takes whole rows of its own"
        parents = None if tree.parents is None else [-1, *(parent + 1 for parent in tree.parents)]
        return Evidence(self.feed([self.pending, *tree.tokens], parents=parents), {})

    def commit(self, verdict: Verdict) -> None:
        self.rollback(self._last_start + 1 + len(verdict.path))
        self.pending = verdict.extra

    def mark(self) -> Any:
        return self.pending, self.length

    def restore(self, mark: Any) -> None:
        self.pending, length = mark
        self.rollback(length)
