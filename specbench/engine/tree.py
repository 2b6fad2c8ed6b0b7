"""The values of a round: what is proposed (DraftTree, Riders), what the target answers (Evidence), what stands (Verdict).

Nothing here needs torch at import; tensors are carried and not looked at.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


# Limits of methods' options, said before anything is laid out that no memory holds and no patience awaits.
MOST_NODES = 4096  # of a tree, of a draft, and of what is prepared at once
WIDEST = math.isqrt(MOST_NODES)  # children of a node, level by level: so many nodes have so many children each
DEEPEST = 128  # tokens of a context that a table keeps by every length, and levels of a tree that is kept by paths
MOST_KEPT = 100_000_000  # tokens, rounds or hits that are counted or kept beside a draft


class Contract(enum.Enum):
    """How the drafted tokens came about; an acceptance rule is exact only for some of these."""

    __hash__ = object.__hash__  # every round looks one up, and enum's own is written in Python

    NONE = "none"  # nothing drafted
    FIXED_SET = "fixed_set"  # chosen without randomness that the rule must undo (argmax, top-k, keyed noise, retrieval)
    IID = "iid"  # each node drawn independently from q of its parent
    WITHOUT_REPLACEMENT = "without_replacement"  # siblings drawn from q of their parent without replacement, in index order


class Unread(Sequence[int]):
    """Drafted ids that lie on a device and that the host has not read: whoever looks at one of them waits for the device, once.

    on_device [n], -1 where the draft's logits made no law. below: no id is as large. Raises ValueError where one is -1.
    """

    def __init__(self, on_device: torch.Tensor, below: int):
        self.on_device, self.below = on_device, below
        self._ids: list[int] | None = None

    def lies_on(self, device: torch.device) -> bool:
        """Whether what runs there can take the ids without the host."""
        return self.on_device.device == device

    def tell(self, ids: list[int]) -> None:
        """The ids, by somebody who read them along with something else."""
        if min(ids) < 0:
            from specbench.engine.ranks import NO_LAW

            raise ValueError(NO_LAW)
        self._ids = ids

    def read(self) -> list[int]:
        if self._ids is None:
            self.tell(self.on_device.tolist())
        assert self._ids is not None
        return self._ids

    def __len__(self) -> int:
        return len(self.on_device)

    def __getitem__(self, place: Any) -> Any:
        return self.read()[place]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self.read() == list(other)

    def __repr__(self) -> str:
        return f"Unread({len(self)})" if self._ids is None else repr(self._ids)


@dataclass(slots=True)
class DraftTree:
    """Drafted tokens below the pending token (the root, node -1).

    tokens: N ids in topological order; siblings stand in the order in which they were drawn (the rule tries them so).
    parents: index of each node's parent, -1 for the root; None means a chain (node i hangs on node i - 1).
    contract: how the tokens were chosen. q: for IID and WITHOUT_REPLACEMENT, q[i] is the draft's distribution [V] (after the
    same warping as the target's) from which node i's sibling set was drawn; siblings share it.
    num_forwards: draft forwards that this tree cost. num_wasted: drafted tokens that the method dropped itself before the
    target saw them; stale: they were dropped because the target had left their prefix. phase: the method's own word for what
    kind of round this is. by_stop: whether the method's stop said how long it is; from others it learns nothing.
    riders: rows that ride in the target's forward and are never committed. start_layer, hidden: the draft has run pending and
    all nodes through the target's layers below start_layer already; hidden [1 + N, width] is what came out, and verification
    goes on from there.
    """

    tokens: Sequence[int]
    parents: list[int] | None = None
    contract: Contract = Contract.FIXED_SET
    q: Sequence[torch.Tensor] | torch.Tensor | None = None
    num_forwards: int = 0
    num_wasted: int = 0
    stale: bool = False
    phase: str = ""
    by_stop: bool = True
    riders: Riders | None = None
    start_layer: int = 0
    hidden: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if not self.tokens:
            self.contract = Contract.NONE
        if self.parents is not None:
            assert len(self.parents) == len(self.tokens), "one parent per node"
            assert all(-1 <= p < i for i, p in enumerate(self.parents)), "parents come before their children"
        assert self.q is None or len(self.q) == len(self.tokens), "one q row per node"

    def refuse_impossible(self, room: int, max_nodes: int, vocab_size: int) -> None:
        """Raise ValueError for a proposal that breaks what its drafter promised or names ids that the target does not have."""
        known = isinstance(self.tokens, Unread) and self.tokens.below <= vocab_size  # without reading them
        if self.tokens and not known and not (min(self.tokens) >= 0 and max(self.tokens) < vocab_size):
            odd = next(token for token in self.tokens if not 0 <= token < vocab_size)
            raise ValueError(f"id {odd!r} was drafted: the target's are 0 to {vocab_size - 1}")
        rows = len(self.tokens) + (0 if self.riders is None else len(self.riders))
        if rows > max(max_nodes, room):  # so much is kept free in the cache, and what can be kept always fits
            raise ValueError(f"{rows} nodes and riders were proposed: the drafter's max_nodes is {max_nodes}")
        if len(self.tokens) > room and self.depth > room:
            raise ValueError(f"a draft {self.depth} deep was proposed where {room} can be kept")

    @property
    def is_chain(self) -> bool:
        return self.parents is None

    def parent(self, node: int) -> int:
        return node - 1 if self.parents is None else self.parents[node]

    def depths(self) -> list[int]:
        """Depth of each node; children of the root have depth 1."""
        if self.parents is None:
            return list(range(1, len(self.tokens) + 1))
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent < 0 else depths[parent] + 1)
        return depths

    @property
    def depth(self) -> int:
        """Depth of the deepest node; 0 when nothing is drafted."""
        return len(self.tokens) if self.parents is None else max(self.depths(), default=0)

    def lead_with_first_path(self) -> None:
        """Number the path of first children (the root's, its, and so on) 0, 1 ..., and the others behind it as they stood.

        Siblings keep their order. A rule that tries the likeliest child first stays on that path more often than on any other,
        and its rows then lie in the cache where they are kept: a key that moves is read and written number by number.
        """
        path, above = [], -1
        for node, parent in enumerate(self.parents or ()):
            if parent == above:
                path.append(node)
                above = node
        if above == len(path) - 1:  # a chain, or led by it already
            return
        assert self.riders is None and self.hidden is None, "they go by the nodes' numbers"
        assert self.parents is not None
        tokens, parents = self.tokens, self.parents
        order = path + [node for node in range(len(tokens)) if node not in path]
        place = [-1] * (len(order) + 1)  # the last is the root's
        for number, node in enumerate(order):
            place[node] = number
        self.tokens, self.parents = [tokens[node] for node in order], [place[parents[node]] for node in order]
        if self.q is not None:
            self.q = [self.q[node] for node in order]

    def children(self) -> list[list[int]]:
        """children()[i + 1] lists the children of node i in sibling order; entry 0 belongs to the root."""
        lists: list[list[int]] = [[] for _ in range(len(self.tokens) + 1)]
        for node in range(len(self.tokens)):
            lists[self.parent(node) + 1].append(node)
        return lists


class _Shared(DraftTree):
    """Nobody may write into what everybody holds."""

    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"EMPTY is shared: to set {name}, make a DraftTree([]) of your own")


EMPTY = DraftTree([])  # one plain step
EMPTY.__class__ = _Shared


@dataclass(slots=True)
class Riders:
    """Rows that ride in a target's forward: answered, seen by no node, and never committed (Lookahead, PPD).

    tokens: R ids, or embeddings [R, width] in their place: what enters layer `start_layer`, 0 being the first. parents: the row
    that each hangs on, in the tree's numbering: -1 the root, 0 to N - 1 the nodes, N + j rider j (j < own index); a rider sees
    the text, its ancestors and itself. positions: places behind the root's, by default one more than the parent's.
    """

    parents: list[int]
    tokens: list[int] | None = None
    embeddings: torch.Tensor | None = None
    positions: list[int] | None = None
    start_layer: int = 0

    def __post_init__(self) -> None:
        assert (self.tokens is None) != (self.embeddings is None), "riders have tokens or embeddings"
        assert self.tokens is None or self.start_layer == 0, "tokens enter at the first layer"
        given = self.tokens if self.tokens is not None else self.embeddings
        assert given is not None and len(given) == len(self.parents), "one parent per rider"

    def __len__(self) -> int:
        return len(self.parents)


@dataclass(frozen=True, slots=True)
class Own:
    """What the target itself says. tokens: by row, the root's first; agreed: so many drafts of a chain are these tokens."""

    tokens: list[int]
    agreed: int


@dataclass(slots=True)
class Evidence:
    """What one forward of the target answered, rejected rows included.

    logits [1 + N, vocab]: row 0 after pending, row i + 1 after node i (a prefill: [1, vocab], after the prompt). taps: by layer
    [rows, width] of the same rows, or of the whole prompt. riders [R, vocab]. share: layers that the forward ran, of all. own:
    the target's tokens, where it was asked to choose as it went (`target.Choosing`).
    """

    logits: torch.Tensor
    taps: Mapping[int, torch.Tensor]
    riders: torch.Tensor | None = None
    share: float = 1.0
    own: Own | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the target made of a tree: the accepted path (node indices from the root down) and one more token of its own."""

    path: tuple[int, ...]
    tokens: tuple[int, ...]  # the accepted tokens and then the target's own (correction or bonus): num_accepted + 1

    @property
    def num_accepted(self) -> int:
        return len(self.path)

    def refuse_impossible(self, tree: DraftTree, vocab_size: int) -> None:
        """Raise ValueError for a verdict that is no path of the tree with one of the target's own ids behind it."""
        above = -1
        for node in self.path:
            if not 0 <= node < len(tree.tokens) or tree.parent(node) != above:
                raise ValueError(f"the verdict's path {list(self.path)} is none of the draft's ({len(tree.tokens)} nodes)")
            above = node
        if list(self.tokens[:-1]) != [tree.tokens[node] for node in self.path] or not 0 <= self.tokens[-1] < vocab_size:
            raise ValueError(
                f"the verdict's tokens {list(self.tokens)} are not its path's and one of the target's {vocab_size} ids"
            )

    @property
    def extra(self) -> int:
        """The target's own token: it becomes the pending one."""
        return self.tokens[-1]

    @property
    def rows(self) -> list[int]:
        """The rows of the forward that are committed: pending and the accepted path."""
        return [0, *(node + 1 for node in self.path)]


@dataclass(frozen=True, slots=True)
class Feedback:
    """All that a round was, for the parts that learn from it."""

    tree: DraftTree
    evidence: Evidence
    verdict: Verdict

    def tap(self, layer: int, only: bool = True) -> torch.Tensor:
        """The hidden states [1 + accepted, width] of the rows that were committed. only: without others behind them."""
        hidden, rows = self.evidence.taps[layer], self.verdict.rows
        if rows[-1] != len(rows) - 1:
            return hidden[rows]
        return hidden[: len(rows)] if only else hidden
