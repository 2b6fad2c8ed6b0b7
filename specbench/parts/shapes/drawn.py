"""Trees whose form is fixed before anything is drawn: a node's children are drawn from the draft's law there, or its best.

Under rules that undo a draw (recursive rejection, k-SEQ) siblings are drawn as the contract says, in the order in which the
rule tries them; nothing that was drawn is dropped. Under all others (match, delta) the children are the likeliest tokens, or at
a temperature under `sample_match` the likeliest with the target's own noise added: drawing would only lose.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from specbench.config.options import ConfigError, whole
from specbench.engine.ranks import likeliest
from specbench.engine.tree import MOST_NODES, Contract, DraftTree
from specbench.parts.contracts import Shape
from specbench.parts.shapes.dynamic import ROOT
from specbench.parts.shapes.static import Node, parents_of

if TYPE_CHECKING:
    from torch import Tensor

    from specbench.parts.contracts import Source, Stop
    from specbench.parts.drafts.choice import Choice


def branching_nodes(branching: Sequence[int], key: str = "method.branching") -> list[Node]:
    """The nodes of a tree with branching[d] children below every node of depth d. key: the option that says how wide it is.

    Raises ConfigError (`key`) for anything but a list of whole numbers from 1 up, and for more than MOST_NODES.
    """
    if not isinstance(branching, Sequence) or isinstance(branching, str) or not branching:
        raise ConfigError(key, branching, "give children per node by depth, such as [2,2,1]")
    for width in branching:
        whole(key, width, 1)
    size, widths = 0, 1
    for width in branching:
        widths *= width
        size += widths
        if size > MOST_NODES:
            raise ConfigError(key, list(branching)[:9], f"a tree of more than {MOST_NODES} nodes: take fewer")
    nodes: list[Node] = []
    level: list[Node] = [()]
    for width in branching:
        level = [(*node, rank) for node in level for rank in range(width)]
        nodes += level
    return nodes


def children_of(
    choice: Choice, logits: Tensor, position: int, count: int, contract: Contract
) -> tuple[list[list[int]], Tensor | None]:
    """At most `count` children of each row of logits [n, vocab] for one output position, in the order to be tried.

    Also the laws [n, vocab_size] that they were drawn from; None for children that were not drawn.
    """
    if choice.draws:
        laws = choice.laws(logits)
        return choice.draw_many(laws, count, contract is Contract.IID), laws
    tokens, values = likeliest(choice.scores(logits, position), count)
    return [
        [token for token, value in zip(row, of_row, strict=True) if value > float("-inf")]
        for row, of_row in zip(tokens, values, strict=True)
    ], None


class Drawn(Shape):
    """nodes: of the tree, each named by the ranks on the way to it: (0, 2) is the third child of the root's first.

    contract: how children are drawn where they are: IID, or WITHOUT_REPLACEMENT. A level costs one forward of the source.
    """

    form = "static tree"

    def __init__(self, nodes: Sequence[Node], contract: Contract):
        self.nodes, self.contract = sorted(nodes, key=lambda node: (len(node), node)), contract
        self.num_children = [0] * (1 + len(self.nodes))
        for parent in parents_of(self.nodes):
            self.num_children[parent + 1] += 1
        self.depth = max(map(len, self.nodes), default=0)
        self.children: list[list[int]] = [[] for _ in self.num_children]
        for number, (node, parent) in enumerate(zip(self.nodes, parents_of(self.nodes), strict=True)):
            assert node[-1] == len(self.children[parent + 1]), "siblings have the ranks 0, 1 ..."
            self.children[parent + 1].append(number)

    @property
    def branches(self) -> bool:
        return any(count > 1 for count in self.num_children)

    def max_nodes(self, max_depth: int) -> int:
        return sum(len(node) <= max_depth for node in self.nodes)

    def max_rows(self, max_depth: int) -> int:
        return sum(len(node) < max_depth and count > 0 for node, count in zip(self.nodes, self.num_children[1:], strict=True))

    def grow(self, source: Source, max_depth: int, choice: Choice, position: int, stop: Stop) -> DraftTree:
        tokens: list[int] = []
        parents: list[int] = []
        laws: list[Tensor] = []
        logits = source.root()
        rows = [(ROOT, ROOT)]  # of the logits: the node by its number in the plan, and in the tree
        given = {ROOT: ROOT}  # node of the tree: its number among those that the source was given
        for level in range(min(max_depth, self.depth)):
            width = max(self.num_children[planned + 1] for planned, _ in rows)
            drawn, of_rows = children_of(choice, logits, position + level, width, self.contract)
            below: list[tuple[int, int]] = []
            for row, (planned, node) in enumerate(rows):
                # Fewer tokens than siblings: what would stand below those that are missing is missing too.
                for child, token in zip(self.children[planned + 1], drawn[row], strict=False):
                    if self.num_children[child + 1]:
                        below.append((child, len(tokens)))
                    tokens.append(token)
                    parents.append(node)
                    if of_rows is not None:
                        laws.append(of_rows[row])
            if not below or level + 1 == min(max_depth, self.depth):
                break
            logits = source.next([tokens[node] for _, node in below], [given[parents[node]] for _, node in below])
            for _, node in below:
                given[node] = len(given) - 1
            rows = below
        form = parents if self.branches else None
        return DraftTree(tokens, form, contract=self.contract, q=laws) if choice.draws else DraftTree(tokens, form)
