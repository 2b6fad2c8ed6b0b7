"""Static draft trees: which fixed tree of guesses is worth its rows (Medusa, Cai et al. 2024, section 2.3.3).

K heads guess the next K tokens, each with a ranked list of candidates. A node is named by the choices that lead to it: (0, 2)
is the third candidate of the second head below the first candidate of the first. How often head k's i-th candidate is right is
measured once; treating heads as independent, a node is accepted with the product along its path, and since siblings exclude
each other the expected accepted length of a tree is the sum of its nodes' products. A child's product is never above its
parent's, so the N best nodes hold their ancestors and adding the best next node is optimal for every N at once.

That a further row costs time sets the size: `best_num_nodes` weighs the emitted tokens against the seconds of a round.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Node = tuple[int, ...]
RowCost = Callable[[int], float] | Mapping[int, float]  # rows of one target forward -> seconds


def build_static_tree(accuracies: Sequence[Sequence[float]], num_nodes: int) -> list[Node]:
    """The tree of at most `num_nodes` nodes with the greatest expected accepted length, best node first.

    accuracies[k][i]: probability that head k's i-th candidate is the right token, given that the path above is. Parents stand
    before their children and the first n nodes are the best tree of n nodes; of equals the shallower, then the lower choices
    come first. Nodes that can never be accepted (product 0) are left out, so there may be fewer than `num_nodes`.
    Raises ValueError for accuracies that are no probabilities and for a negative number of nodes.
    """
    _check_accuracies(accuracies)
    if num_nodes < 0:
        raise ValueError(f"num_nodes={num_nodes}: give 0 or more")
    tree: list[Node] = []
    waiting: list[tuple[float, int, Node]] = []  # (-product, depth, node): children wait once their parent stands

    def offer_children(node: Node, product: float) -> None:
        if len(node) < len(accuracies):
            for choice, accuracy in enumerate(accuracies[len(node)]):
                if product * accuracy > 0.0:
                    heapq.heappush(waiting, (-product * accuracy, len(node) + 1, (*node, choice)))

    offer_children((), 1.0)
    while waiting and len(tree) < num_nodes:
        negative, _, node = heapq.heappop(waiting)
        tree.append(node)
        offer_children(node, -negative)
    return tree


def node_probabilities(accuracies: Sequence[Sequence[float]], nodes: Sequence[Node]) -> list[float]:
    """The probability that each node is accepted: the product of the accuracies along its path."""
    return [math.prod(accuracies[depth][choice] for depth, choice in enumerate(node)) for node in nodes]


def expected_accepted_length(accuracies: Sequence[Sequence[float]], nodes: Sequence[Node]) -> float:
    """Expected number of accepted tokens per round; the target's own token comes on top of it.

    Raises ValueError when a node lacks its parent or stands twice: it could not be accepted as counted.
    """
    held = set(nodes)
    if len(held) != len(nodes) or any(len(node) > 1 and node[:-1] not in held for node in nodes) or () in held:
        raise ValueError("the nodes are no tree: every node once, and its parent too")
    return math.fsum(node_probabilities(accuracies, nodes))


def parents_of(nodes: Sequence[Node]) -> list[int]:
    """The index of each node's parent (-1: the root), for `DraftTree`; parents stand before their children.

    Raises ValueError when they do not.
    """
    place: dict[Node, int] = {(): -1}
    parents = []
    for index, node in enumerate(nodes):
        if node[:-1] not in place:
            raise ValueError(f"node {node} stands before its parent or without it")
        parents.append(place[node[:-1]])
        place[node] = index
    return parents


def choose_num_nodes(
    accuracies: Sequence[Sequence[float]], row_cost_seconds: RowCost, draft_seconds: float, max_nodes: int | None = None
) -> int:
    """How many nodes of the static tree emit most tokens per second; 0 where no tree beats plain decoding.

    row_cost_seconds: seconds of one target forward over that many rows (pending token and nodes), a function or measured
    values, see `seconds_of_rows`. draft_seconds: what drafting costs a round, whatever the size. max_nodes: no more than these;
    default is what the measured rows reach, or the whole tree for a function.
    """
    if max_nodes is None:
        if isinstance(row_cost_seconds, Mapping):
            max_nodes = max(row_cost_seconds) - 1
        else:
            max_nodes = sum(math.prod(len(head) for head in accuracies[: depth + 1]) for depth in range(len(accuracies)))
    nodes = build_static_tree(accuracies, max_nodes)
    seconds = [seconds_of_rows(row_cost_seconds, 1 + count) for count in range(len(nodes) + 1)]
    return best_num_nodes(node_probabilities(accuracies, nodes), seconds, draft_seconds)


def best_num_nodes(probabilities: Sequence[float], row_seconds: Sequence[float], draft_seconds: float) -> int:
    """How many of the nodes, best first, make a round emit most tokens per second; 0 means not to draft.

    probabilities[i]: that node i is accepted. row_seconds[n]: a target forward over n nodes and the pending token; 0 to at
    least as many as there are nodes. Of equals the smallest.
    """
    best, best_rate, emitted = 0, 1.0 / row_seconds[0], 1.0
    for count, probability in enumerate(probabilities, start=1):
        emitted += probability
        rate = emitted / (draft_seconds + row_seconds[count])
        if rate > best_rate:
            best, best_rate = count, rate
    return best


@dataclass(frozen=True)
class FastestTree:
    """nodes: best first, empty where no tree beats plain decoding. expected_accepted: per round."""

    nodes: list[Node]
    expected_accepted: float
    tokens_per_second: float


def fastest_tree(
    accuracies: Sequence[Sequence[float]], plain_seconds: float, round_seconds: Sequence[Mapping[int, float]]
) -> FastestTree:
    """The tree that emits most tokens per second, of any number of levels and nodes.

    round_seconds[levels - 1]: seconds of a whole round, drafting included, by the number of its nodes, where these are the best
    ones of so many levels; more nodes never cost less (what was measured otherwise is evened out), between two sizes lies a
    straight line, and below the smallest its own cost. plain_seconds: of a round without a draft. Of equals the one with fewer
    levels, then with fewer nodes.
    """
    best = FastestTree([], 0.0, 1.0 / plain_seconds)
    for levels, measured in enumerate(round_seconds, start=1):
        sizes = sorted(measured)
        seconds = never_falling([plain_seconds, *(measured[size] for size in sizes)])
        costs = dict(zip((1, *(1 + size for size in sizes)), seconds, strict=True))
        costs.setdefault(2, seconds[1])  # the first node brings the drafting with it: no line from plain decoding to there
        nodes = build_static_tree(accuracies[:levels], choose_num_nodes(accuracies[:levels], costs, 0.0))
        expected = expected_accepted_length(accuracies, nodes)
        rate = (1.0 + expected) / seconds_of_rows(costs, 1 + len(nodes))
        if nodes and rate > best.tokens_per_second:
            best = FastestTree(nodes, expected, rate)
    return best


def seconds_of_rows(row_cost_seconds: RowCost, rows: int) -> float:
    """Seconds of a forward over `rows` rows: the function's value, or between measured values the straight line.

    Raises ValueError for rows outside what was measured, and for a cost that is not above 0.
    """
    if not isinstance(row_cost_seconds, Mapping):
        seconds = row_cost_seconds(rows)
    else:
        known = sorted(row_cost_seconds)
        if not known or not known[0] <= rows <= known[-1]:
            raise ValueError(f"{rows} rows: measured were {known}")
        right = bisect_left(known, rows)
        high, low = known[right], known[max(right - 1, 0)]
        share = (rows - low) / (high - low) if high > low else 0.0
        seconds = row_cost_seconds[low] + share * (row_cost_seconds[high] - row_cost_seconds[low])
        if rows == high:
            seconds = row_cost_seconds[high]
    if not seconds > 0.0:
        raise ValueError(f"{rows} rows cost {seconds} seconds: give a time above 0")
    return seconds


def _check_accuracies(accuracies: Sequence[Sequence[float]]) -> None:
    for head, values in enumerate(accuracies):
        if not all(0.0 <= value <= 1.0 for value in values) or math.fsum(values) > 1.0 + 1e-6:
            raise ValueError(f"accuracies of head {head}: probabilities of different tokens, so at most 1 in sum; got {values}")


def never_falling(values: Sequence[float]) -> list[float]:
    """The nearest sequence in squares that never falls: where it did, the mean (Ayer et al. 1955: pool adjacent violators)."""
    blocks: list[tuple[float, int]] = []  # mean, length
    for value in values:
        mean, length = value, 1
        while blocks and blocks[-1][0] > mean:
            before, count = blocks.pop()
            mean, length = (mean * length + before * count) / (length + count), length + count
        blocks.append((mean, length))
    return [mean for mean, length in blocks for _ in range(length)]
