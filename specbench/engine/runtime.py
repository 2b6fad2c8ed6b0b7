"""What a method is given to work with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specbench.config.specs import PairSpec
    from specbench.engine.model import Model
    from specbench.engine.sampling import SamplingLaw


@dataclass
class Runtime:
    """Loaded models and settings of this process. `draft` is None unless the method asked for a local draft model."""

    pair: PairSpec
    target: Model
    draft: Model | None
    law: SamplingLaw
    max_new_tokens: int  # of every request of the run
    eos_ids: frozenset[int]
    timeout_seconds: float = 60.0
    trace: bool = False  # methods with workers report spans
    load_draft: Callable[[], Any] | None = None  # makes the draft's Model in a worker's process; picklable
    load_stage: Callable[[str], tuple[str, Callable[[], Any]]] | None = None  # of a chain: see `pair.stages`
    alive: Callable[[], None] = lambda: None  # a schedule of one process calls it after every round: who does not, hangs
    machine: Any = None  # a processes.machine.Machine to take processes from; None: this one

    def watched_by(self, alive: Callable[[], None]) -> None:
        """From now on schedules and models give their signs of life there."""
        self.alive = self.target.alive = alive
        if self.draft is not None:
            self.draft.alive = alive

    @property
    def device(self) -> str:
        return self.pair.target.device
