"""Speculative decoding with a draft model (Leviathan et al. 2211.17192; Chen et al. 2302.01318).

A small model drafts `draft_length` tokens, the target verifies them in one forward. Lossless: greedy token for token; with
temperature token for token under `sample_match` (keyed noise) and in law under `ratio` (the papers' rule).

`compat="amusd"`: the baseline published with AMUSD (2410.17375). After a fully accepted round its draft is not fed its own last
token: it guesses the bonus position itself, one forward more, and when the guess is wrong the whole next chunk is thrown away.
"""

from __future__ import annotations

from specbench.method import (
    MOST_NODES,
    WIDEST,
    Adapter,
    Chain,
    ConfigError,
    DraftTree,
    Dynamic,
    Evidence,
    Feedback,
    Method,
    ModelDraft,
    Request,
    Rule,
    Shape,
    Stop,
    exact_rules,
    make_stop,
    named_part,
    one_of,
    partial,
    whole,
)


class Speculative(Method):
    """draft_length: tokens drafted per round, in depth. rule: greedy_match | sample_match | ratio; null = match.

    stop: a name or a node (docs/options.md). shape: chain | dynamic (num_nodes of a tree with top_k children a node,
    under the match rules and delta). adapter: a node that names one; null: the draft stays as it is. compat: null | amusd.
    """

    def __init__(
        self,
        *,
        draft_length: int = 4,
        rule: str | Rule | None = None,
        stop: str | Stop | None = None,
        shape: str | Shape = "chain",
        top_k: int = 4,
        num_nodes: int = 12,
        adapter: Adapter | None = None,
        compat: str | None = None,
    ):
        whole("method.draft_length", draft_length, 1, high=MOST_NODES)
        whole("method.top_k", top_k, 1, high=WIDEST)
        whole("method.num_nodes", num_nodes, 1, high=MOST_NODES)
        one_of("method.compat", compat, None, "amusd")
        grown = named_part("method.shape", shape, Shape, {"chain": Chain, "dynamic": partial(Dynamic, top_k, num_nodes)})
        rules = exact_rules(trees=True) if grown.branches else [*exact_rules(trees=False), "ratio"]
        if compat is not None and (grown.branches or stop not in (None, "fixed")):
            raise ConfigError("method.compat", compat, "is the published baseline: a chain of a fixed length")
        stop = make_stop(stop, draft_length, at_once=grown.branches)
        drafter = ModelDraft(grown, stop) if compat is None else WithoutBonus(grown, stop)
        super().__init__(drafter, rule=rule, rules=rules, stop=stop, adapter=adapter, draft_length=draft_length)


class WithoutBonus(ModelDraft):
    """The published baseline's draft: after full acceptance it guesses the bonus; a wrong guess spoils the whole chunk."""

    unfed: int | None = None  # last draft of a fully accepted round

    def begin(self, request: Request, first_token: int, evidence: Evidence) -> None:
        super().begin(request, first_token, evidence)
        self.unfed = None

    def observe(self, feedback: Feedback) -> None:
        super().observe(feedback)
        accepted_all = self.session.length < len(self.tokens) - 1 and feedback.verdict.num_accepted
        self.unfed = self.tokens[-2] if accepted_all else None

    def propose(self, max_depth: int) -> DraftTree:
        if max_depth < 1 or self.unfed is None:
            return super().propose(max_depth)
        base, position = self.session.length, len(self.tokens) - self.prompt_length
        guess = self._say([self.unfed], position - 1)
        if guess == self.tokens[-1]:
            tree = super().propose(max_depth)
            tree.num_forwards += 1
            return tree
        feed = guess
        for ahead in range(max_depth):
            feed = self._say([feed], position + ahead)
        self.session.rollback(base + 1)  # the last accepted draft stays fed, the guess and what followed go
        return DraftTree([], num_forwards=max_depth + 1, num_wasted=max_depth + 1, stale=True)

    def _say(self, feed: list[int], position: int) -> int:
        logits = self.session.feed(feed, last_only=True)
        return self.choice.draw(logits)[0] if self.choice.draws else self.choice.token(logits, position)
