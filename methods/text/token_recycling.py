"""Token Recycling (Luo et al. 2408.08696): the target's likeliest next tokens, kept per token, fill a fixed tree.

A matrix keeps for every token of the vocabulary the `width` likeliest tokens behind it, as the target said when it last read
that token: all rows of a verification are kept, rejected ones too, since what was computed for nothing is worth something
later. A round's tree has a fixed form; a node is a choice among its parent's row. Greedy in the released code; here every rule
for a fixed set is exact, as the tree is filled without chance.

That is `num_nodes: <a number>`, whose template takes its rows for free, as an accelerator does. `num_nodes: auto`, the default
and ours, drafts what pays here (`parts.shapes.worth`): a node's chance is how often the token of its rank at its depth was
right so far, and the nodes with most tokens per second are taken, by the seconds that a forward of so many rows was measured to
take.

Of the paper are the matrix of eight (1 MB at a vocabulary of 32,000, as int32), 80 nodes with 8, 21, 25, 15, 8 and 3 of them
at depths 1 to 6, its start with nothing (the prompt's logits are not used) and its life across requests: the order of prompts
is part of the result, and `scope: sample` begins every prompt cold. Ours: which 80 nodes these are (the likeliest of every
depth, a rank's share taken as falling like 1 / (rank + 1) squared); rows that nobody wrote yet draft nothing; where a token
stands on several rows of a forward a committed row wins, and the last of equals (undefined in the released code).
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Hashable, Iterator
from functools import partial

import numpy as np

from specbench.engine.ranks import best
from specbench.method import (
    MOST_NODES,
    Drafter,
    DraftTree,
    Evidence,
    Feedback,
    Method,
    Needs,
    Request,
    Rule,
    Setting,
    exact_rules,
    one_of,
    whole,
)
from specbench.parts.shapes.likeliest import grow_likeliest
from specbench.parts.shapes.static import Node, node_probabilities, parents_of
from specbench.parts.shapes.worth import Worth

BY_DEPTH = (8, 21, 25, 15, 8, 3)
WIDTH = 8
AUTO_NODES = 47  # weighed at most
_SHARES = [1.0 / (rank + 1) ** 2 for rank in range(WIDTH)]
SHARES = [[share / sum(_SHARES) for share in _SHARES]] * len(BY_DEPTH)

Place = tuple[tuple[int, int], Hashable]  # a token and its depth, and the kind of guess that led to it


def template(num_nodes: int) -> list[Node]:
    """The likeliest `num_nodes` of the 80 nodes, by depth."""
    nodes: list[Node] = []
    level: list[Node] = [()]
    for count in BY_DEPTH:
        below = [(*node, choice) for node in level for choice in range(WIDTH)]
        value = dict(zip(below, node_probabilities(SHARES, below), strict=True))
        level = sorted(below, key=lambda node: (-value[node], node))[:count]
        nodes += level
    value = dict(zip(nodes, node_probabilities(SHARES, nodes), strict=True))
    return sorted(
        sorted(nodes, key=lambda node: (-value[node], len(node), node))[:num_nodes], key=lambda node: (len(node), node)
    )


class TokenRecycling(Method):
    """num_nodes: of the template, at most 80, or auto (by costs and success). scope: session (the matrix lasts) | sample.

    rule: greedy_match | sample_match | delta; null = match.
    """

    def __init__(self, *, num_nodes: int | str = "auto", scope: str = "session", rule: str | Rule | None = None):
        whole("method.num_nodes", num_nodes, 1, auto=True, high=MOST_NODES)
        one_of("method.scope", scope, "session", "sample")
        super().__init__(RecycledDraft(num_nodes, scope), rule=rule, rules=exact_rules(trees=True))


class RecycledDraft(Drafter):
    """successors [vocab, width]: the likeliest next tokens, best first; -1 where nobody wrote yet."""

    source, form = "the target's own top tokens", "tree"
    successors = np.empty((0, WIDTH), dtype=np.int32)

    def __init__(self, num_nodes: int | str, scope: str):
        self.worth = Worth(AUTO_NODES) if isinstance(num_nodes, str) else None
        self.nodes = [] if isinstance(num_nodes, str) else template(num_nodes)
        self.needs = Needs(scope="session" if scope == "session" else "sample")

    @property
    def max_nodes(self) -> int:
        return len(self.nodes) if self.worth is None else self.worth.max_nodes

    def open(self, setting: Setting) -> None:
        model = setting.runtime.target
        self.branches = model.tree_refusal is None
        if not self.branches:
            self.nodes = [node for node in self.nodes if not any(node)]
        self.parents, self.depths = parents_of(self.nodes), [len(node) for node in self.nodes]
        self.successors = np.full((model.vocab_size, WIDTH), -1, dtype=np.int32)
        self.read = self.successors.reshape(-1).data  # of one number in a fraction of numpy's time
        if self.worth is not None:
            self.worth.open(setting.target)

    def settle(self) -> None:
        if self.worth is not None:
            self.worth.settle()

    def reset(self) -> None:
        self.successors.fill(-1)
        if self.worth is not None:
            self.worth.clear()

    def begin(self, request: Request, first_token: int, evidence: Evidence) -> None:
        if self.needs.scope == "sample":
            self.reset()
        if self.worth is not None:
            self.worth.begin()
        self.pending = first_token

    def _children(self, place: Place) -> Iterator[tuple[int, float, Place]]:
        (token, depth), _ = place
        for rank in range(WIDTH if depth < len(BY_DEPTH) else 0):
            below = self.read[WIDTH * token + rank]
            if below >= 0:
                assert self.worth is not None
                yield below, self.worth.chance((depth, rank), SHARES[depth][rank]), ((below, depth + 1), (depth, rank))

    def propose(self, max_depth: int) -> DraftTree:
        if self.worth is not None:
            root: Place = ((self.pending, 0), None)
            grow = partial(grow_likeliest, root, self._children, self.worth.max_nodes, max_depth, 0.0, self.branches)
            return self.worth.weigh(grow)[0].draft()
        tokens: list[int] = []
        parents: list[int] = []
        place = {-1: -1}  # of the template's nodes that are drafted; nothing is below one that is not
        for number, (node, above) in enumerate(zip(self.nodes[: bisect(self.depths, max_depth)], self.parents, strict=False)):
            parent = place.get(above)
            if parent is None:
                continue
            token = self.read[WIDTH * (tokens[parent] if parent >= 0 else self.pending) + node[-1]]
            if token >= 0:
                place[number] = len(tokens)
                tokens.append(token)
                parents.append(parent)
        return DraftTree(tokens, None if parents == list(range(-1, len(parents) - 1)) else parents)

    def observe(self, feedback: Feedback) -> None:
        verdict, logits = feedback.verdict, feedback.evidence.logits
        if self.worth is not None:
            self.worth.learn(verdict.tokens)
        read = [self.pending, *feedback.tree.tokens]
        latest = {token: row for row, token in enumerate(read)} | {read[row]: row for row in verdict.rows}
        found = best(logits, WIDTH, list(latest.values()))[0]
        each = len(found) // len(latest)
        for number, token in enumerate(latest):  # item by item, which takes a fraction of numpy's time where rows are few
            for rank in range(each):
                self.read[WIDTH * token + rank] = found[each * number + rank]
        self.pending = verdict.extra

    def memory_bytes(self) -> dict[str, int]:
        return {"successors": self.successors.nbytes}

    def facts(self) -> dict[str, float | int | str]:
        return {} if self.worth is None else self.worth.facts()
