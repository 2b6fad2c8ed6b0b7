"""STAND (Song et al. 2506.04708): a table of n-grams with the target's probabilities drafts a tree, drawn without replacement.

For every context of `max_ngram` down to one token the table keeps the `width` likeliest next tokens with their probabilities:
the mean of the target's laws at all places where the context stood (the k-th repetition weighs 1 / (k + 1)). A node's children
come from the longest context that the table knows, drawn without replacement by Gumbel-top-k: logarithms of probabilities plus
noise. Where the rule compares with the target's keyed samples (sample_match) the noise is the target's own, so that both agree
as often as their laws allow; under `recursive_without_replacement` (the rule that fits the paper's draws) it is the draft's,
and the laws are handed over. At temperature 0, under `delta` and with `draw: best` it is the likeliest tokens, without noise.

Of the paper are the table (4-grams, ten tokens), the update, the draws and a tree that is learned from data: which ranks the
text's own tokens had is counted, and the best `num_nodes` paths of ranks are the tree (80 in the paper). The rule is inferred,
the paper names none. Ours: the tree is learned while text is committed, on top of a prior, and renewed with every prompt
(theirs: offline, on 30 prompts); probabilities are stored as warped, at temperature 0 as plain ones; the table is fed from
committed rows alone, and forgets its oldest contexts beyond 200,000. It lasts from prompt to prompt as `scope: session` says
(theirs: through all trajectories of a problem); `sample` begins every prompt cold.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from specbench.engine.ranks import likeliest
from specbench.method import (
    DEEPEST,
    MOST_NODES,
    Choice,
    Contract,
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
from specbench.parts.drafts.choice import OWN_STREAM
from specbench.parts.shapes.static import Node, build_static_tree, node_probabilities, parents_of

MAX_CONTEXTS = 200_000
DRAWN_RULE = "recursive_without_replacement"
_PRIOR = [0.5, 0.15, 0.08, 0.05, 0.03, 0.02, 0.015, 0.01, 0.01, 0.01]  # a rank's share, before anything was counted
_PRIOR_WEIGHT, _PRIOR_NODES = 30.0, 625  # in places of text; nodes of the tree that the best are taken of

Entry = tuple[int, dict[int, float]]  # how often the context stood, and what follows it


class NgramTable:
    """By context (a tuple of tokens) the likeliest next tokens."""

    def __init__(self, max_ngram: int, width: int):
        self.max_ngram, self.width = max_ngram, width
        self.entries: dict[tuple[int, ...], Entry] = {}

    def find(self, text: Sequence[int]) -> dict[int, float]:
        """What follows the longest known end of a text; empty where none is known."""
        for size in range(min(self.max_ngram, len(text)), 0, -1):
            entry = self.entries.get(tuple(text[-size:]))
            if entry is not None:
                return entry[1]
        return {}

    def learn(self, text: Sequence[int], law: dict[int, float]) -> None:
        """The target's law behind a text: at most `width` of its tokens, the likeliest first."""
        for size in range(1, min(self.max_ngram, len(text)) + 1):
            context = tuple(text[-size:])
            count, known = self.entries.get(context, (0, {}))
            if not count:
                self.entries[context] = (1, law)
                continue
            share = 1.0 / (count + 1)
            mixed = {token: (1.0 - share) * p for token, p in known.items()}
            for token, p in law.items():
                mixed[token] = mixed.get(token, 0.0) + share * p
            best = sorted(mixed.items(), key=lambda item: (-item[1], item[0]))[: self.width]
            self.entries[context] = (count + 1, dict(best))
        while len(self.entries) > MAX_CONTEXTS:
            del self.entries[next(iter(self.entries))]


class RankTree:
    """The tree of `num_nodes` paths of ranks that the text took most often; `add` per committed token."""

    def __init__(self, num_nodes: int, max_depth: int, width: int):
        self.num_nodes, self.max_depth, self.width = num_nodes, max_depth, width
        shares = [_PRIOR[:width]] * max_depth
        nodes = build_static_tree(shares, _PRIOR_NODES)
        self.prior = dict(zip(nodes, node_probabilities(shares, nodes), strict=True))
        self.clear()

    def clear(self) -> None:
        self.counts: Counter[Node] = Counter()
        self.end_text()

    def end_text(self) -> None:
        self.open: list[Node] = []  # paths that the coming token may lengthen

    def add(self, rank: int | None) -> None:
        """The rank that the text's next token had among the candidates; None where it was none."""
        taken = [] if rank is None else [(*path, rank) for path in [*self.open, ()] if len(path) < self.max_depth]
        self.counts.update(taken)
        self.open = taken

    def best(self) -> list[Node]:
        """Parents before children: a path was taken at least as often as any that goes on from it."""

        def value(node: Node) -> float:
            return self.counts[node] + _PRIOR_WEIGHT * self.prior.get(node, 0.0)

        nodes = sorted(self.prior.keys() | self.counts.keys(), key=lambda node: (-value(node), len(node), node))
        return nodes[: self.num_nodes]


class Stand(Method):
    """num_nodes, max_depth: of the tree. max_ngram: longest context. width: tokens kept per context. draw: gumbel | best.

    scope: session | sample. rule: greedy_match | sample_match | delta | recursive_without_replacement (drawn); null = match.
    """

    def __init__(
        self,
        *,
        num_nodes: int = 80,
        max_depth: int = 12,
        max_ngram: int = 4,
        width: int = 10,
        draw: str = "gumbel",
        scope: str = "session",
        rule: str | Rule | None = None,
    ):
        for name, size, most in (
            ("num_nodes", num_nodes, MOST_NODES),
            ("max_depth", max_depth, DEEPEST),
            ("max_ngram", max_ngram, DEEPEST),
            ("width", width, MOST_NODES),
        ):
            whole(f"method.{name}", size, 1, high=most)
        one_of("method.draw", draw, "gumbel", "best")
        one_of("method.scope", scope, "session", "sample")
        rules = [*exact_rules(trees=True), *([DRAWN_RULE] if draw == "gumbel" else [])]
        super().__init__(StandDraft(num_nodes, max_depth, max_ngram, width, draw, scope), rule=rule, rules=rules)


class StandDraft(Drafter):
    """tokens: the text. nodes: the tree of this prompt, by paths of ranks."""

    source, form = "n-grams with probabilities", "learned tree"

    def __init__(self, num_nodes: int, max_depth: int, max_ngram: int, width: int, draw: str, scope: str):
        self.table, self.tree = NgramTable(max_ngram, width), RankTree(num_nodes, max_depth, min(width, len(_PRIOR)))
        self.draw, self.needs = draw, Needs(scope="session" if scope == "session" else "sample")

    @property
    def max_nodes(self) -> int:
        return self.tree.num_nodes

    def open(self, setting: Setting) -> None:
        target = setting.runtime.target
        self.law, self.vocab_size, self.device = setting.runtime.law, target.vocab_size, target.device
        self.choice = Choice(self.law, setting.rule, target.vocab_size, target.device)
        self.branches = target.tree_refusal is None

    def reset(self) -> None:
        self.table.entries.clear()
        self.tree.clear()

    def begin(self, request: Request, first_token: int, evidence: Evidence) -> None:
        if self.needs.scope == "sample":
            self.reset()
        self.tree.end_text()
        self.nodes = [node for node in self.tree.best() if self.branches or not any(node)]
        self.parents = parents_of(self.nodes)
        self.prompt_length, self.tokens = len(request.prompt_ids), [*request.prompt_ids, first_token]
        self.choice.begin(request)
        self.rng = random.Random(request.noise_key ^ OWN_STREAM)
        self.noise: dict[int, Tensor] = {}  # the target's, by output position

    def _order(self, found: dict[int, float], position: int) -> list[int]:
        """The candidates as they are drawn, for an output position."""
        if self.draw == "best" or not (self.choice.draws or self.choice.shares_noise):
            return list(found)
        if self.choice.draws:
            noise = [-math.log(self.rng.expovariate(1.0) or 1e-300) for _ in found]
        else:
            if position not in self.noise:
                self.noise[position] = self.choice.noise(position).cpu()
            noise = self.noise[position][list(found)].tolist()
        scores = {token: math.log(p) + g for (token, p), g in zip(found.items(), noise, strict=True)}
        return sorted(scores, key=lambda token: -scores[token])

    def propose(self, max_depth: int) -> DraftTree:
        place: dict[int, int] = {}  # of the tree's nodes that are drafted
        drawn: dict[int, list[int]] = {}  # candidates below a drafted node, by its place
        filled: Counter[int] = Counter()  # how many of them are drafted
        laws: dict[int, Tensor] = {}
        tokens: list[int] = []
        parents: list[int] = []
        paths: dict[int, list[int]] = {-1: self.tokens[-self.table.max_ngram :]}
        position = len(self.tokens) - self.prompt_length
        for number, (node, above) in enumerate(zip(self.nodes, self.parents, strict=True)):
            if len(node) > max_depth or (above >= 0 and above not in place):
                continue
            parent = place[above] if above >= 0 else -1
            if parent not in drawn:
                found = self.table.find(paths[parent])
                drawn[parent] = self._order(found, position + len(node) - 1)
                if self.choice.draws and found:
                    laws[parent] = self._dense(found)
            rank = node[-1]
            # Where the tree lacks a rank its younger siblings are left out: no draw may be passed over.
            if rank < len(drawn[parent]) and filled[parent] == rank:
                filled[parent] += 1
                place[number] = len(tokens)
                paths[len(tokens)] = [*paths[parent], drawn[parent][rank]][-self.table.max_ngram :]
                tokens.append(drawn[parent][rank])
                parents.append(parent)
        chain = parents == list(range(-1, len(tokens) - 1))
        if self.choice.draws:
            q = [laws[parent] for parent in parents]
            return DraftTree(tokens, None if chain else parents, Contract.WITHOUT_REPLACEMENT, q)
        return DraftTree(tokens, None if chain else parents)

    def _dense(self, found: dict[int, float]) -> Tensor:
        law = torch.zeros(self.vocab_size, dtype=torch.float64, device=self.device)
        values = torch.tensor(list(found.values()), dtype=torch.float64, device=self.device)
        law[list(found)] = values / values.sum()
        return law

    def observe(self, feedback: Feedback) -> None:
        verdict = feedback.verdict
        logits, rows = feedback.evidence.logits, verdict.rows
        scores, rows = (logits, rows) if self.law.greedy else (self.law.warp(logits[rows]), list(range(len(rows))))
        for ids, values, token in zip(*likeliest(scores, self.table.width, rows), verdict.tokens, strict=True):
            order = self._order(self.table.find(self.tokens[-self.table.max_ngram :]), len(self.tokens) - self.prompt_length)
            self.tree.add(order.index(token) if token in order else None)
            law = {i: math.exp(value) for i, value in zip(ids, values, strict=True) if value > -math.inf}
            self.table.learn(self.tokens[-self.table.max_ngram :], law)
            self.tokens.append(token)
        self.noise = {place: row for place, row in self.noise.items() if place >= len(self.tokens) - self.prompt_length}

    def memory_bytes(self) -> dict[str, int]:
        return {"ngram_table": 500 * len(self.table.entries)}  # a tuple and a dict of ten
