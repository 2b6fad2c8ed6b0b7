"""Speculative decoding with a draft model (Leviathan et al. 2211.17192; Chen et al. 2302.01318).

A small model drafts `draft_length` tokens, the target verifies them in one forward. Lossless: greedy token for token; with
temperature token for token under `sample_match` (keyed noise) and in law under `ratio` (the papers' rule).

After a fully accepted round the draft has not seen its own last token: it is fed that token and the bonus together, in the
forward that begins the next draft. `compat="amusd"` skips this, as the baseline published with AMUSD does (2410.17375): the
draft guesses the bonus position itself, one forward more, and when the guess is wrong the whole next chunk is thrown away.
"""

from __future__ import annotations

import torch

from specbench.config.options import ConfigError
from specbench.engine.request import Request
from specbench.engine.runtime import Runtime
from specbench.engine.sampling import SamplingLaw
from specbench.engine.session import Session
from specbench.engine.tree import EMPTY, Contract, DraftTree, Verdict
from specbench.method import Method, Needs


class Speculative(Method):
    """draft_length: tokens drafted per round. rule: greedy_match | sample_match | ratio; null = match. compat: null | amusd."""

    needs = Needs(draft="local")

    def __init__(self, *, draft_length: int = 4, rule: str | None = None, compat: str | None = None):
        if not isinstance(draft_length, int) or draft_length < 1:
            raise ConfigError("method.draft_length", draft_length, "speculative decoding drafts at least 1 token a round")
        if compat not in (None, "amusd"):
            raise ConfigError("method.compat", compat, "possible: null, amusd")
        if rule not in (None, "greedy_match", "sample_match", "ratio"):
            raise ConfigError("method.rule", rule, "possible for a draft chain: greedy_match, sample_match, ratio")
        super().__init__(draft_length=draft_length, rule=rule)
        self.draft_length: int = draft_length
        self.compat = compat

    def open(self, runtime: Runtime) -> None:
        super().open(runtime)
        if runtime.draft is None:
            raise ConfigError("pair.draft", None, "speculative decoding needs a draft model")
        self.draft = Session(runtime.draft)
        self.law: SamplingLaw = runtime.law
        self.draws_from_q = self.rule_for(runtime.law).needs == "probabilities"

    def begin(self, request: Request, first_token: int) -> None:
        self.request = request
        self.prompt_length = len(request.prompt_ids)
        self.tokens = [*request.prompt_ids, first_token]  # everything committed
        self.unfed_draft: int | None = None  # last draft of a fully accepted round, not fed yet
        self.draft.start(self.prompt_length + request.max_new_tokens + self.draft_length + 2)
        self.draft.feed(request.prompt_ids, last_only=True)
        if self.draws_from_q:
            # Its own stream, apart from the rule's: the same seed gives the same drafts whatever the rule draws.
            self.generator = torch.Generator(self.draft.model.device).manual_seed(request.noise_key ^ 0x5DEECE66D)

    def propose(self, max_depth: int) -> DraftTree:
        length = min(self.draft_length, max_depth)
        if length < 1:
            return EMPTY
        if self.compat == "amusd" and self.unfed_draft is not None:
            return self._propose_without_bonus(length)
        return self._chain(length)

    def observe(self, verdict: Verdict) -> None:
        self.tokens += verdict.tokens
        # What was fed beyond the accepted prefix is wrong; the target's own token is not fed yet.
        keep = len(self.tokens) - 1
        self.unfed_draft = self.tokens[-2] if self.draft.length < keep and verdict.num_accepted else None
        self.draft.rollback(min(self.draft.length, keep))

    def _chain(self, length: int) -> DraftTree:
        """Draft `length` tokens; the first forward also feeds what the draft has not seen yet (one or two tokens)."""
        tokens: list[int] = []
        rows: list[torch.Tensor] = []
        feed = self.tokens[self.draft.length :]
        position = len(self.tokens) - self.prompt_length
        for _ in range(length):
            token = self._step(feed, position + len(tokens), rows)
            tokens.append(token)
            feed = [token]
        contract = Contract.IID if self.draws_from_q else Contract.FIXED_SET
        return DraftTree(tokens, contract=contract, q=rows if self.draws_from_q else None, num_forwards=length)

    def _step(self, feed: list[int], position: int, rows: list[torch.Tensor]) -> int:
        logits = self.draft.feed(feed, last_only=True)
        if not self.draws_from_q:
            # Under sample_match the draft uses the target's own noise: the two agree as often as their laws allow.
            return self.law.choose(logits, [position], self.request.noise_key)[0]
        q = self.law.probabilities(logits)[0]
        if len(q) < self.target.model.vocab_size:  # ids that the draft has no row for are never drafted
            q = torch.nn.functional.pad(q, (0, self.target.model.vocab_size - len(q)))
        rows.append(q)
        return int(torch.multinomial(q, 1, generator=self.generator))

    def _propose_without_bonus(self, length: int) -> DraftTree:
        """The published baseline after full acceptance: guess the bonus position; a wrong guess spoils the whole chunk."""
        assert self.unfed_draft is not None
        base = self.draft.length
        guess = self._step([self.unfed_draft], len(self.tokens) - 1 - self.prompt_length, [])
        if guess == self.tokens[-1]:
            tree = self._chain(length)
            tree.num_forwards += 1
            return tree
        feed = [guess]
        for k in range(length):
            feed = [self._step(feed, len(self.tokens) + k - self.prompt_length, [])]
        self.draft.rollback(base + 1)  # the last accepted draft stays fed, the guess and what followed go
        return DraftTree([], num_forwards=length + 1, num_wasted=length + 1, stale=True)

    def memory_bytes(self) -> dict[str, int]:
        return super().memory_bytes() | {"draft_kv": self.draft.cache.nbytes}
