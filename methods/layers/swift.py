"""SWIFT (Xia et al. 2410.06916, ICLR 2025): the target without some of its layers drafts, which ones is searched on the fly.

The draft is the target itself on its own weights and its own cache, so the prompt is never read with layers missing; what a
draft leaves in the cache is forgotten before verification, which runs all layers. The first layer always runs, and the last one
where there are enough others; a draft ends where its token's probability falls below 0.8 (the authors' code asks the largest
one, the same where nothing is drawn), after 25 tokens at most. The best set so far
lasts for a whole pass over the prompts, so their order is part of the result (scope: session); rounds spent on candidates are
on the clock. The bonus token comes from the warped law, as every token does here (the authors' code draws it from raw logits).

Exact under the match rules and `delta`; under `ratio` tokens are drawn from the draft's own law. What deviates: whole layers
are skipped (theirs are attention and MLP apart), drafts are chains (theirs has siblings beside its spine), and proposals are
random (every 25th of theirs is Bayesian). Of ours: a candidate reads the round's draft once, both sets are judged on the same
`window` positions, those that verification answers anyway; the paper reads a request's first tokens again. The search rests
for good when the set in use reaches `enough` of a window, or after `patience` candidates without gain; their cap of 1,000 tries
is not here. Kept of theirs: skip_ratio 0.45 (theirs of attention and MLP parts, ours of layers), window 50, enough 0.93,
patience 300. The positions judged depend on the set in use, so that candidates are compared where it led. `run.json` has the
set that the warm-up left and, under `method_facts_at_end`, the last pass's, with the windows judged, the gains and the
matchness (share of positions on which a set said the target's own token) of what was kept after the first and last window.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from specbench.engine.ranks import best
from specbench.engine.request import NOBODYS
from specbench.engine.session import Session
from specbench.method import (
    EMPTY,
    MOST_KEPT,
    MOST_NODES,
    Chain,
    Choice,
    ConfigError,
    Drafter,
    DraftTree,
    Evidence,
    Feedback,
    Method,
    Needs,
    Request,
    Rule,
    Setting,
    Stop,
    exact_rules,
    make_stop,
    number,
    whole,
)
from specbench.parts.stops.confidence import Confidence


class Swift(Method):
    """draft_length: tokens drafted per round at most. skip_ratio, window, enough, patience, seed: see `SkipDraft`.

    stop: a name or a node (docs/options.md); null = confidence at 0.8.
    rule: greedy_match | sample_match | delta | ratio; null = match.
    """

    def __init__(
        self,
        *,
        draft_length: int = 25,
        skip_ratio: float = 0.45,
        window: int = 50,
        enough: float = 0.93,
        patience: int = 300,
        seed: int = 0,
        stop: str | Stop | None = None,
        rule: str | Rule | None = None,
    ):
        whole("method.draft_length", draft_length, 1, high=MOST_NODES)
        number("method.skip_ratio", skip_ratio, 0.0, 1.0, "a number from 0 to 1")
        whole("method.window", window, 1, high=MOST_KEPT)
        number("method.enough", enough, 0.0, 1.0, "a number from 0 to 1")
        whole("method.patience", patience, 0, high=MOST_KEPT)
        whole("method.seed", seed, 0)
        stop = make_stop(Confidence(threshold=0.8) if stop is None else stop, draft_length)
        rules = [*exact_rules(trees=False), "ratio"]
        drafter = SkipDraft(stop, skip_ratio=skip_ratio, window=window, enough=enough, patience=patience, seed=seed)
        super().__init__(drafter, rule=rule, rules=rules, stop=stop, draft_length=draft_length)


class SkipDraft(Drafter):
    """A `Source` on the target's own session without the layers of the set in use.

    skip_ratio: of the layers between the first and the last that are skipped, rounded, at least one. window: positions on which
    a candidate is judged. enough: share of them, right, that ends the search. patience: candidates without gain that end it
    (0: no search). seed: of the proposals. Of two layers the second is skipped. Raises ConfigError for a target of one layer.
    """

    needs = Needs(fork=True, scope="session")
    source, form = "layers skipped", "chain"
    num_forwards = 0
    best: list[Tensor] | None  # the draft's logits, where they say more than its tokens
    said: Sequence[int] | None  # the likeliest token of each row of the draft, and of the candidate's
    said_candidate: list[int] | None

    def __init__(self, stop: Stop, *, skip_ratio: float, window: int, enough: float, patience: int, seed: int):
        self.stop, self.shape = stop, Chain()
        self.skip_ratio, self.window, self.enough, self.patience, self.seed = skip_ratio, window, enough, patience, seed

    @property
    def max_nodes(self) -> int:
        return self.shape.max_nodes(self.stop.draft_length or 0)

    def open(self, setting: Setting) -> None:
        target, total = setting.target, setting.target.model.num_cache_layers
        assert isinstance(target, Session)
        if total < 2:
            raise ConfigError(
                "pair.target", setting.runtime.pair.target.name, "has one layer, and none to skip: take a deeper one"
            )
        self.target, self.inner = target, range(1, max(2, total - 1))
        self.num_skipped = max(1, round(self.skip_ratio * len(self.inner)))
        self.choice = Choice(setting.runtime.law, setting.rule, target.model.vocab_size, target.model.device)
        self.reset()

    def reset(self) -> None:
        self.random = random.Random(self.seed)
        # Evenly spread to begin with: a choice of ours.
        step = len(self.inner) / self.num_skipped
        self.skipped = tuple(self.inner[int(step * (n + 0.5))] for n in range(self.num_skipped))
        self.without_gain = self.windows = self.gains = 0
        self.matchness: list[float] = []  # of what was kept after the first window and the last one
        self.searches = self.patience > 0 and self.num_skipped < len(self.inner)  # there is another set
        self._suggest()

    def _suggest(self) -> None:
        self.candidate = self.skipped
        while self.searches and self.candidate == self.skipped:
            self.candidate = tuple(sorted(self.random.sample(self.inner, self.num_skipped)))
        self.seen = self.right = self.right_candidate = 0

    def begin(self, request: Request, first_token: int, evidence: Evidence) -> None:
        self.pending, self.num_output = first_token, 1
        self.choice.begin(request)

    def propose(self, max_depth: int) -> DraftTree:
        if max_depth < 1:
            self.said = self.said_candidate = None
            return EMPTY
        return self._draft(max_depth, self.stop)

    def rehearsal(self, longest: int) -> Callable[[int], DraftTree]:
        self.begin(NOBODYS, 0, Evidence(torch.empty(0), {}))
        return lambda length: self._draft(length, Stop()) if length else EMPTY

    def _draft(self, max_depth: int, stop: Stop) -> DraftTree:
        before = self.target.mark()
        self.draft = self.target.fork(self.skipped)
        self.best = None if self.choice.law.greedy else []  # a greedy draft says what it drafts
        tree = self.shape.grow(self, max_depth, self.choice, self.num_output, stop)
        tree.num_forwards = self.num_forwards
        self.target.restore(before)
        self.said = tree.tokens if self.best is None else best(torch.cat(self.best), 1)[0]
        self.said_candidate = None
        if self.searches and tree.tokens:
            candidate = self.target.fork(self.candidate)
            self.said_candidate = best(candidate.feed([self.pending, *tree.tokens[:-1]]), 1)[0]
            self.target.restore(before)
            tree.num_forwards += 1
        return tree

    def root(self) -> Tensor:
        self.num_forwards = 1
        return self._feed(self.pending)

    def next(self, tokens: Sequence[int], parents: Sequence[int]) -> Tensor:
        self.num_forwards += 1
        return self._feed(tokens[0])

    def _feed(self, token: int) -> Tensor:
        logits = self.draft.feed([token])
        if self.best is not None:
            self.best.append(logits)
        return logits

    def observe(self, feedback: Feedback) -> None:
        verdict = feedback.verdict
        self.pending = verdict.extra
        self.num_output += len(verdict.tokens)
        if self.said is None or self.said_candidate is None:
            return
        rows = min(verdict.num_accepted + 1, len(self.said_candidate))  # those that stand on the text
        truth = verdict.tokens if self.best is None else best(feedback.evidence.logits, 1, range(rows))[0]
        self.seen += rows
        self.right += _agreeing(self.said, truth, rows)
        self.right_candidate += _agreeing(self.said_candidate, truth, rows)
        if self.seen >= self.window:
            self._judge()

    def _judge(self) -> None:
        """Keep the better of the two sets, and go on with another candidate, or rest."""
        better = self.right_candidate > self.right
        self.windows += 1
        self.gains += better
        self.matchness = [*self.matchness[:1], max(self.right, self.right_candidate) / self.seen]
        self.without_gain = 0 if better else self.without_gain + 1
        if better:
            self.skipped = self.candidate
        reached = max(self.right, self.right_candidate) / self.seen
        self.searches = reached < self.enough and self.without_gain < self.patience
        self._suggest()

    def facts(self) -> dict[str, float | int | str]:
        names = ("first_matchness", "last_matchness") if len(self.matchness) > 1 else ("first_matchness",)
        return {
            "skipped_layers": ",".join(map(str, self.skipped)),
            "searching": int(self.searches),
            "windows": self.windows,
            "gains": self.gains,
            **{name: round(value, 4) for name, value in zip(names, self.matchness, strict=False)},
        }


def _agreeing(said: Sequence[int], truth: Sequence[int], rows: int) -> int:
    return sum(said[row] == truth[row] for row in range(rows))
