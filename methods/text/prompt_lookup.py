"""Prompt lookup decoding (Saxena 2023; transformers' `prompt_lookup_num_tokens`): what followed the last tokens before.

The last n tokens of the text are looked for in the text itself, the longest n first; what stood behind the first place where
they are found is drafted. Rounds equal those of transformers' `PromptLookupCandidateGenerator` under the same settings (its
defaults are ours: 10 tokens, n from 2 down to 1), which is a test; a draft ends before an EOS, as there.

Beyond it: places are found in a table of n-grams that grows with the text, instead of by a search through all of it every
round. What is drafted looks at no model, so it is exact under every rule that takes a fixed set.
"""

from __future__ import annotations

from collections.abc import Callable

from specbench.method import (
    MOST_NODES,
    Drafter,
    DraftTree,
    Evidence,
    Feedback,
    Method,
    Request,
    Rule,
    Stop,
    exact_rules,
    make_stop,
    whole,
)
from specbench.parts.drafts.lookup import Ngrams


class PromptLookup(Method):
    """draft_length: tokens drafted at most. max_ngram: the longest run of tokens that is looked for.

    stop: a name or a node (docs/options.md). rule: greedy_match | sample_match | delta; null = match.
    """

    def __init__(
        self,
        *,
        draft_length: int = 10,
        max_ngram: int = 2,
        stop: str | Stop | None = None,
        rule: str | Rule | None = None,
    ):
        whole("method.draft_length", draft_length, 1, high=MOST_NODES)
        whole("method.max_ngram", max_ngram, 1, high=MOST_NODES)
        stop = make_stop(stop, draft_length, at_once=True)
        drafter = LookupDraft(draft_length, max_ngram)
        super().__init__(drafter, rule=rule, rules=exact_rules(trees=False), stop=stop, draft_length=draft_length)


class LookupDraft(Drafter):
    source, form = "text", "chain"

    def __init__(self, draft_length: int, max_ngram: int):
        self.draft_length, self.max_ngram = draft_length, max_ngram

    @property
    def max_nodes(self) -> int:
        return self.draft_length

    def begin(self, request: Request, first_token: int, evidence: Evidence) -> None:
        self.eos_ids = request.eos_ids
        self.text = Ngrams(self.max_ngram, (*request.prompt_ids, first_token))

    def propose(self, max_depth: int) -> DraftTree:
        return DraftTree(self.text.following(min(self.draft_length, max_depth), self.eos_ids))

    def rehearsal(self, longest: int) -> Callable[[int], DraftTree]:
        return lambda length: DraftTree([0] * length)  # what is found costs nothing worth a measurement

    def observe(self, feedback: Feedback) -> None:
        self.text.extend(feedback.verdict.tokens)
