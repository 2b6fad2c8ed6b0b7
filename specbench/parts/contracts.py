"""What the parts of a method promise each other.

    Drafter    proposes a tree each round          Source     what a shape grows on: logits after a node
    Shape      turns a source into a tree          Stop       how much is drafted
    Rule       decides what stands                 Schedule   who computes when
    Adapter    changes the draft between rounds

A method is a recipe of these (`specbench.method`); `Rule` is in `parts.rules.rule`, the target's side in `engine.target`.
Parts are called by the schedule, on the clock where nothing else is said, and never see the store or the configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from specbench.config.options import whole
from specbench.engine.tree import EMPTY, MOST_NODES, DraftTree, Evidence, Feedback

if TYPE_CHECKING:
    from torch import Tensor

    from specbench.config.specs import PairSpec
    from specbench.engine.request import Outcome, Request
    from specbench.engine.runtime import Runtime
    from specbench.engine.target import Target
    from specbench.parts.drafts.choice import Choice
    from specbench.parts.rules.rule import Rule
    from specbench.processes.placement import Placement


@dataclass(frozen=True)
class Needs:
    """What a part asks for, so that others do not pay for it; a method needs what its parts need (`|`).

    draft: "none", "local" (in the target's process) or "worker" (in a process of its own, which the schedule starts).
    taps: which of transformers' hidden_states the target's forwards leave behind (-1: the LM head's input).
    riders, layers, fork: what the target must be able to do beside trees (`Target.can`); layers: how many it must have at least
    where it is run layer by layer.
    stages: models beside the pair's own, by names that `pair.stages` knows.
    scope: how long state lives: a sample, or a pass over the prompts ("session": their order is part of the result, and
    reports say so; every pass begins with `Part.reset`).
    """

    draft: Literal["none", "local", "worker"] = "none"
    taps: tuple[int, ...] = ()
    riders: bool = False
    layers: int = 0
    fork: bool = False
    scope: Literal["sample", "session"] = "sample"
    stages: tuple[str, ...] = ()

    def __or__(self, other: Needs) -> Needs:
        assert "none" in (self.draft, other.draft) or self.draft == other.draft, "one draft, in one place"
        return Needs(
            draft=self.draft if other.draft == "none" else other.draft,
            taps=tuple(dict.fromkeys((*self.taps, *other.taps))),
            riders=self.riders or other.riders,
            layers=max(self.layers, other.layers),
            fork=self.fork or other.fork,
            scope="session" if "session" in (self.scope, other.scope) else "sample",
            stages=tuple(dict.fromkeys((*self.stages, *other.stages))),
        )

    @property
    def of_target(self) -> frozenset[str]:
        """What `Target.can` must hold."""
        return frozenset(name for name in ("riders", "layers", "fork") if getattr(self, name)) | (
            {"taps"} if self.taps else set()
        )


@dataclass(frozen=True)
class Setting:
    """What parts are opened with: the loaded models, the target's session, and the rule that will judge."""

    runtime: Runtime
    target: Target
    rule: Rule


class Part:
    """What every part may say of itself. `open` once a run, `close` at its end whatever happened (twice does no harm)."""

    needs: Needs = Needs()

    def look_up(self, pair: PairSpec) -> Mapping[str, Path]:
        """The folders that the options name, by option: a run is continued with what they held. Before a folder of the run
        exists and a weight is loaded. Raises ConfigError for what is not there."""
        return {}

    def open(self, setting: Setting) -> None:
        """Take hold of models, build sessions. Raises ConfigError when the pair lacks what is needed."""

    def close(self) -> None:
        """Free what `open` took; also after an `open` that failed, or none."""

    def settle(self) -> None:
        """The process has got another number of threads for good, off the clock: measure anew what rests on costs."""

    def reset(self) -> None:
        """A pass over the prompts begins, off the clock: forget what is kept between samples (scope="session")."""

    def sessions(self) -> dict[str, Any]:
        """Sessions on the text by role (target, draft), which checks compare with fresh ones."""
        return {}

    def memory_bytes(self) -> dict[str, int]:
        """Bytes held by role (draft_kv, heads_weights ...), for the footprint table."""
        return {}

    def facts(self) -> dict[str, float | int | str]:
        """What the part settled for itself in `open` (a measured length, say), for run.json."""
        return {}

    def counted(self) -> dict[str, float]:
        """What it counted in the sample that is over and no round says, by name (unit in the name); off the clock."""
        return {}


class Drafter(Part):
    """Proposes. The base drafts nothing: every round is one plain step.

    source, form: what drafts and the form of a draft, in a word or two, for the table of methods.
    """

    source: ClassVar[str] = "-"
    form: str = "-"

    @property
    def max_nodes(self) -> int:
        """Upper bound of a proposal's nodes and riders: room kept free in the target's cache."""
        return 0

    def announce(self, request: Request) -> None:
        """A prompt is coming; the clock has not started (retrieval, scripts)."""

    def begin(self, request: Request, first_token: int, evidence: Evidence) -> None:
        """A new sample: forget the last one. first_token is the target's own, now pending; evidence is its prefill's."""

    def propose(self, max_depth: int) -> DraftTree:
        """Draft for one round, at most `max_depth` deep (0: nothing is wanted). An empty tree is one plain step."""
        return EMPTY

    def observe(self, feedback: Feedback) -> None:
        """What the target made of the last proposal."""

    def rehearsal(self, longest: int) -> Callable[[int], DraftTree] | None:
        """What drafts a chain of any length up to `longest` for the pending token of no request and leaves no trace of it: how
        long a round takes is measured with it, off the clock. None where a draft's length is not its cost."""
        return None


class Source(Protocol):
    """Distributions to grow a tree on, one round at a time. num_forwards: of the model or heads behind it, in this round.

    One that can draft a chain by itself has `chain(length, choice, position)` too: the tokens without a draw, or None for now.
    """

    num_forwards: int

    def root(self) -> Tensor:
        """Logits [1, vocab] after the pending token; begins the round."""

    def next(self, tokens: Sequence[int], parents: Sequence[int]) -> Tensor:
        """Logits [n, vocab] after new nodes. parents: numbers of nodes in the order in which they were given, -1 the root."""


class Shape:
    """Which nodes are drafted. form: in a word or two."""

    form: ClassVar[str] = "tree"

    @property
    def branches(self) -> bool:
        """Whether a node may have siblings: then the source must keep more than one path."""
        return False

    def max_nodes(self, max_depth: int) -> int:
        """Nodes of a tree of that depth at most."""
        return max_depth

    def max_rows(self, max_depth: int) -> int:
        """Rows that the source is given for a tree of that depth at most (`Source.next`): room kept free in its cache."""
        return self.max_nodes(max_depth)

    def grow(self, source: Source, max_depth: int, choice: Choice, position: int, stop: Stop) -> DraftTree:
        """position: the output position of the first drafted token."""
        raise NotImplementedError


class Stop(Part):
    """How much is drafted: before a round, and after every drafted token. Called in the process that drafts.

    draft_length: tokens at most; None until a recipe fills in its own. Raises ConfigError (method.stop.draft_length).
    draft_taps: which hidden states a draft model's forwards leave behind for it (`ModelDraft.session.tapped`).
    Whether a drawn token is shown to the target must not depend on its value (ratio rules): a stop decides about the next one.
    In a draft's process of its own a stop is not opened: one that has to be, or keeps state, is refused there (`make_stop`).
    """

    draft_taps: ClassVar[tuple[int, ...]] = ()

    def __init__(self, draft_length: int | None = None):
        whole("method.stop.draft_length", draft_length, 1, null="the method's", high=MOST_NODES)
        self.draft_length = draft_length

    def join(self, drafter: Drafter) -> None:
        """Who will ask it, opened before the stop is. Raises ConfigError (method.stop) for a draft that it cannot serve."""

    def fits(self, request: Request) -> bool:
        """Whether a sample can be decoded at all. `begin` raises ValueError for one that cannot."""
        return True

    def begin(self, request: Request) -> None:
        """A new sample, before caches are laid out for it."""

    def budget(self, room: int) -> int:
        """Tokens to draft at most in the coming round, in depth; `room` can be kept. 0: a plain step."""
        return room if self.draft_length is None else min(room, self.draft_length)

    @property
    def looks(self) -> bool:
        """Whether it wants to see every token before the next one is drafted."""
        return type(self).goes_on is not Stop.goes_on

    def goes_on(self, logits: Tensor, token: int) -> bool:
        """Whether to draft another one behind `token`, which was chosen by `logits` [1, vocab]."""
        return True

    def learn(self, num_drafted: int, num_accepted: int) -> None:
        """How the last round went, in depth; not called where the draft's length was not the stop's (`DraftTree.by_stop`)."""


class Schedule(Part):
    """Who computes when. `placement`: cores and threads of the target's process, where they are shared with workers.

    name: in a word; source, form: as a drafter's, where the schedule drafts itself. num_workers: processes beside the target's.
    """

    name: ClassVar[str] = "sequential"
    source: ClassVar[str] = "-"
    form: ClassVar[str] = "-"
    num_workers: int = 0
    placement: Placement | None = None

    @property
    def max_nodes(self) -> int:
        return 0

    def run(self, parts: Parts, request: Request) -> Outcome:
        """Continue one prompt."""
        raise NotImplementedError

    def pids(self) -> list[int]:
        """Process ids of workers."""
        return []


class Adapter(Part):
    """Changes the draft between rounds; its seconds are booked as `learn`."""

    version: int = 0  # how often the draft's weights were changed

    def adopt(self, runtime: Runtime) -> Runtime:
        """The runtime as the drafter shall see it: with a draft of the adapter's own, if it changes weights that others use."""
        return runtime

    def attach(self, drafter: Drafter) -> None:
        """The drafter whose draft is changed, opened."""

    def begin(self, request: Request, first_token: int) -> None:
        """A new sample; on the prefill's clock."""

    def learn(self, feedback: Feedback) -> None:
        """After every round, the last one included."""


class Parts(Protocol):
    """A method as its schedule sees it."""

    drafter: Drafter
    stop: Stop
    adapter: Adapter | None
    setting: Setting
