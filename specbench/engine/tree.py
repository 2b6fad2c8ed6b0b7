"""DraftTree: what a method proposes for one round, and the contract that says how its tokens were chosen."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Contract(enum.Enum):
    """How the drafted tokens came about; an acceptance rule is exact only for some of these."""

    NONE = "none"  # nothing drafted
    FIXED_SET = "fixed_set"  # chosen without randomness that the rule must undo (argmax, top-k, keyed noise, retrieval)
    IID = "iid"  # each node drawn independently from q of its parent
    WITHOUT_REPLACEMENT = "without_replacement"  # siblings drawn from q of their parent without replacement, in index order


@dataclass(slots=True)
class DraftTree:
    """Drafted tokens below the pending token (the root, node -1).

    tokens: N ids in topological order; siblings stand in the order in which they were drawn (the rule tries them so).
    parents: index of each node's parent, -1 for the root; None means a chain (node i hangs on node i - 1).
    contract: how the tokens were chosen. q: for IID and WITHOUT_REPLACEMENT, q[i] is the draft's distribution [V] (after the
    same warping as the target's) from which node i's sibling set was drawn; siblings share it.
    num_forwards: draft forwards that this tree cost. num_wasted: drafted tokens that the method dropped itself before the
    target saw them; stale: they were dropped because the target had left their prefix. mode: the method's own phase name.
    """

    tokens: list[int]
    parents: list[int] | None = None
    contract: Contract = Contract.FIXED_SET
    q: Sequence[torch.Tensor] | torch.Tensor | None = None
    num_forwards: int = 0
    num_wasted: int = 0
    stale: bool = False
    mode: str = ""

    def __post_init__(self) -> None:
        if not self.tokens:
            self.contract = Contract.NONE
        if self.parents is not None:
            assert len(self.parents) == len(self.tokens), "one parent per node"
            assert all(-1 <= p < i for i, p in enumerate(self.parents)), "parents come before their children"
        assert self.q is None or len(self.q) == len(self.tokens), "one q row per node"

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
        return max(self.depths(), default=0)

    def children(self) -> list[list[int]]:
        """children()[i + 1] lists the children of node i in sibling order; entry 0 belongs to the root."""
        lists: list[list[int]] = [[] for _ in range(len(self.tokens) + 1)]
        for node in range(len(self.tokens)):
            lists[self.parent(node) + 1].append(node)
        return lists


EMPTY = DraftTree([])


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the target made of a tree: the accepted path (node indices from the root down) and one more token of its own."""

    path: tuple[int, ...]
    tokens: tuple[int, ...]  # the accepted tokens and then the target's own (correction or bonus): num_accepted + 1

    @property
    def num_accepted(self) -> int:
        return len(self.path)

    @property
    def extra(self) -> int:
        """The target's own token: it becomes the pending one."""
        return self.tokens[-1]
