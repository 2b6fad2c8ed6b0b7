"""Which of the likeliest continuations are worth their rows: learned chances against the measured cost of a forward.

What follows a place of text is counted, and how far such counts can be trusted depends on the text: a share of 1.0 that stands
on one occurrence is right half of the time. So a guess has a `kind` (how long the match was, how great its share), and how
often guesses of that kind were right in this pass, given that the path above them was, is what it is worth. The target says the
truth of more than was drafted: wherever its own tokens lead through what was weighed, every child of that place is judged,
drafted or not. So a kind that stopped being drafted is still learned about, and nothing has to be tried for its own sake.

A round takes the nodes with most tokens per second: 1 + the sum of the chances of their paths, over the seconds of a forward of
so many rows. Where rows are dear those are few or none, where they are free many: the tree follows the machine.
Ours; the objective is that of Sequoia's sizes (2402.12374) and of SmartSpec's lengths (2406.14066).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from specbench.engine.session import Session
from specbench.engine.target import Target
from specbench.parts.shapes.cost import measure_costs
from specbench.parts.shapes.likeliest import Likeliest
from specbench.parts.shapes.static import seconds_of_rows

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # that are timed, beside the most; between two lies a straight line
_TURNS = 8  # of the measurement: sizes differ by more than a turn's noise, and it is repeated whenever threads change
_PRIOR_WEIGHT = 4.0  # guesses that a prior counts for
_HALF_LIFE = 256  # guesses of a kind after which one counts half


class Size:
    """How many nodes of one tree to take while they come best first. row_seconds[n]: of a forward with n nodes."""

    def __init__(self, row_seconds: Sequence[float]):
        self.row_seconds = row_seconds
        self.met, self.emitted = 0, 1.0
        self.num_nodes, self.rate = 0, 1.0 / row_seconds[0]

    def goes_on(self, probability: float) -> bool:
        """Take note of the next node; whether one behind it could pay, if all were as probable as this one."""
        self.met += 1
        self.emitted += probability
        rate = self.emitted / self.row_seconds[self.met]
        if rate > self.rate:
            self.num_nodes, self.rate = self.met, rate
        return any(
            self.emitted + more * probability > self.rate * self.row_seconds[self.met + more]
            for more in range(1, len(self.row_seconds) - self.met)
        )


class Worth:
    """max_nodes: of a tree. `open` before anything else; `weigh` in a round, `learn` behind it."""

    def __init__(self, max_nodes: int):
        self.max_nodes = max_nodes
        self.row_seconds: list[float] = []
        self.measured: dict[int, float] = {}
        self.clear()

    def clear(self) -> None:
        """Forget how guesses went."""
        self._counts: dict[Hashable, tuple[float, float]] = {}  # by kind: right, judged
        self._weighed: list[Likeliest] = []

    def open(self, target: Target) -> None:
        """The target whose forwards cost; see `settle`."""
        self.target = target
        self.settle()

    def settle(self) -> None:
        """Time forwards by their rows; the session is left empty. A target that cannot go back takes its rows one by one."""
        sizes = [*(rows for rows in ROWS if rows <= self.max_nodes), 1 + self.max_nodes]
        if isinstance(self.target, Session):
            self.measured, _ = measure_costs(self.target, rows=sizes, turns=_TURNS)
            self.row_seconds = [seconds_of_rows(self.measured, 1 + nodes) for nodes in range(1 + self.max_nodes)]
        else:
            self.row_seconds = [float(1 + nodes) for nodes in range(1 + self.max_nodes)]

    def begin(self) -> None:
        """A request begins: what was weighed when the last one ended within a round has no truth to come."""
        self._weighed = []

    def chance(self, kind: Hashable, prior: float) -> float:
        """That a guess of this kind is right where the path above it is."""
        right, judged = self._counts.get(kind, (0.0, 0.0))
        return (right + _PRIOR_WEIGHT * prior) / (judged + _PRIOR_WEIGHT)

    def weigh(self, grow: Callable[[Callable[[float], bool]], Likeliest]) -> tuple[Likeliest, float]:
        """What of a tree is worth drafting, with its tokens per second. grow: makes the tree, whose places are
        (where, kind), asking behind each node whether to go on."""
        size = Size(self.row_seconds)
        tree = grow(size.goes_on)
        self._weighed.append(tree)
        return tree.first(size.num_nodes), size.rate

    def learn(self, truth: Sequence[int]) -> None:
        """The target's own tokens of this round: judge what was weighed for it."""
        for tree in self._weighed:
            below: dict[int, list[int]] = {}
            for node, parent in enumerate(tree.parents):
                below.setdefault(parent, []).append(node)
            place = -1
            for token in truth:
                right = None
                for node in below.get(place, ()):
                    is_right = tree.tokens[node] == token
                    self._judge(tree.places[node][1], is_right)
                    if is_right:
                        right = node
                if right is None:
                    break
                place = right
        self._weighed = []

    def _judge(self, kind: Hashable, is_right: bool) -> None:
        right, judged = self._counts.get(kind, (0.0, 0.0))
        kept = 0.5 ** (1.0 / _HALF_LIFE)
        self._counts[kind] = (kept * right + is_right, kept * judged + 1.0)

    def facts(self) -> dict[str, float | int | str]:
        return {f"target_seconds_of_{rows}_rows": seconds for rows, seconds in self.measured.items()}
