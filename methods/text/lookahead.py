"""Lookahead decoding (Fu et al. 2402.02057, ICML 2024): the target guesses ahead in parallel, and its guesses are the drafts.

Beside the drafts of a round ride the rows of a window: `window` columns of guesses, `ngram` - 1 levels deep. The guess at level
l in column j is for the token 1 + j + l places behind the pending one; it sees level 0 up to its column and its own column
above it (Jacobi iteration along the text, kept for some steps). What the target answers at the deepest level completes one
n-gram per column, which goes into a pool under its first token, and becomes the new deepest level; level 0 is dropped. A round
drafts the pool's latest n-grams behind the pending token, merged into a tree. The rows of the window are riders: answered,
never verified and never committed. Exact under every rule that takes a fixed set.

Choices of ours: levels begin with tokens of the prompt, drawn with the sample's key; the pool begins with the prompt's n-grams;
after m committed tokens the window moves on by m - 1 columns, so that guesses keep their places; at a temperature the window is
answered with the target's own keyed noise. The defaults are small, because rows are dear on a CPU (the authors: window 15,
ngram 5, guesses 15 for a 7B model on an A100).
"""

from __future__ import annotations

import random
from collections import OrderedDict

from specbench.method import (
    EMPTY,
    MOST_NODES,
    Drafter,
    DraftTree,
    Evidence,
    Feedback,
    Method,
    Needs,
    Request,
    Riders,
    Rule,
    Setting,
    exact_rules,
    not_together,
    whole,
)


class Lookahead(Method):
    """window: columns guessed at once. ngram: tokens of an n-gram, its first one included. guesses: n-grams drafted per round.

    rule: greedy_match | sample_match | delta; null = match.
    """

    def __init__(self, *, window: int = 5, ngram: int = 3, guesses: int = 5, rule: str | Rule | None = None):
        whole("method.window", window, 1, high=MOST_NODES)
        whole("method.ngram", ngram, 2, high=MOST_NODES)
        whole("method.guesses", guesses, 1, high=MOST_NODES)
        rows = (window + guesses) * (ngram - 1)
        not_together("method.window", window, rows, MOST_NODES, "a round has {rows} rows", ngram=ngram, guesses=guesses)
        super().__init__(LookaheadDraft(window, ngram, guesses), rule=rule, rules=exact_rules(trees=True))


class LookaheadDraft(Drafter):
    """levels[l][j]: see above. pool: by first token, the n-grams' other tokens, the latest last."""

    needs = Needs(riders=True)
    source, form = "n-grams", "tree"

    def __init__(self, window: int, ngram: int, guesses: int):
        self.window, self.ngram, self.guesses = window, ngram, guesses

    @property
    def max_nodes(self) -> int:
        return (self.guesses + self.window) * (self.ngram - 1)

    def open(self, setting: Setting) -> None:
        self.law = setting.runtime.law

    def begin(self, request: Request, first_token: int, evidence: Evidence) -> None:
        self.request, self.pending, self.num_output = request, first_token, 1
        self.rng = random.Random(request.noise_key)
        self.levels = [self._fill(self.window) for _ in range(self.ngram - 1)]
        self.pool: dict[int, OrderedDict[tuple[int, ...], None]] = {}
        text = (*request.prompt_ids, first_token)
        for start in range(len(text) - self.ngram + 1):
            self._keep(text[start], text[start + 1 : start + self.ngram])

    def _fill(self, count: int) -> list[int]:
        return self.rng.choices(self.request.prompt_ids, k=count)

    def _keep(self, first: int, others: tuple[int, ...]) -> None:
        kept = self.pool.setdefault(first, OrderedDict())
        kept[others] = None
        kept.move_to_end(others)
        if len(kept) > self.guesses:
            kept.popitem(last=False)

    def propose(self, max_depth: int) -> DraftTree:
        if max_depth < 1:
            return EMPTY
        tokens: list[int] = []
        parents: list[int] = []
        nodes: dict[tuple[int, ...], int] = {(): -1}
        for others in reversed(self.pool.get(self.pending, ())):
            for depth in range(1, min(len(others), max_depth) + 1):
                path = others[:depth]
                if path not in nodes:
                    nodes[path] = len(tokens)
                    tokens.append(path[-1])
                    parents.append(nodes[path[:-1]])
        return DraftTree(tokens, parents, riders=self._window(len(tokens)))

    def _window(self, num_nodes: int) -> Riders:
        above = [-1, *range(num_nodes, num_nodes + self.window * (self.ngram - 1))]
        # Level 0 is a chain below the pending token; every other level hangs on the level above it, column by column.
        parents = above[: self.window]
        for level in range(1, self.ngram - 1):
            parents += [num_nodes + (level - 1) * self.window + column for column in range(self.window)]
        return Riders(parents, tokens=[token for level in self.levels for token in level])

    def observe(self, feedback: Feedback) -> None:
        verdict, answers = feedback.verdict, feedback.evidence.riders
        if answers is not None:
            first = self.num_output + self.ngram - 1  # output position that the deepest level's first column answers for
            deepest = answers[-self.window :]
            new = self.law.choose(deepest, range(first, first + self.window), self.request.noise_key)
            for column, token in enumerate(new):
                path = [level[column] for level in self.levels]
                self._keep(path[0], (*path[1:], token))
            moved = min(len(verdict.tokens) - 1, self.window)
            self.levels = [[*level[moved:], *self._fill(moved)] for level in (*self.levels[1:], new)]
        self.pending = verdict.extra
        self.num_output += len(verdict.tokens)
