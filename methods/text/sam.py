"""SAM-Decoding (Hu et al. 2411.10666): what followed the longest suffix of the text is copied, else a draft model drafts.

A suffix automaton of prompt and output knows at every token the longest suffix that stood before, whatever its length. Where
it is at least `min_match` tokens long, what followed is drafted as a chain; elsewhere the pair's draft model drafts as usual.
Rounds say which (`phase`). Copied tokens are not drawn from the model's law, so of the exact rules those for a fixed set
remain.

Of the paper are the automaton, the hybrid, the threshold (5) and the length of a copy (40, from its repository; a default of
16 here, because rows are dear on a CPU). Ours: of several places the latest is copied, and a copy that reaches the end of the
text goes round (a period goes on); the auxiliary drafter is a model (theirs: token recycling or EAGLE-2); there is no second
automaton over a corpus (`rest` looks into one).
"""

from __future__ import annotations

from specbench.method import (
    MOST_NODES,
    Chain,
    DraftTree,
    Evidence,
    Feedback,
    Method,
    ModelDraft,
    Request,
    Rule,
    Stop,
    exact_rules,
    make_stop,
    whole,
)
from specbench.parts.drafts.suffix import SuffixAutomaton


class Sam(Method):
    """draft_length: tokens that the model drafts per round. copy_length: tokens copied. min_match: of a suffix that is trusted.

    stop: a name or a node (docs/options.md): of the model's drafts. rule: greedy_match | sample_match | delta; null =
    match.
    """

    def __init__(
        self,
        *,
        draft_length: int = 4,
        copy_length: int = 16,
        min_match: int = 5,
        stop: str | Stop | None = None,
        rule: str | Rule | None = None,
    ):
        whole("method.draft_length", draft_length, 1, high=MOST_NODES)
        whole("method.copy_length", copy_length, 1, high=MOST_NODES)
        whole("method.min_match", min_match, 1, high=MOST_NODES)
        stop = make_stop(stop, draft_length)
        drafter = SamDraft(stop, copy_length, min_match)
        super().__init__(drafter, rule=rule, rules=exact_rules(trees=False), stop=stop, draft_length=draft_length)


class SamDraft(ModelDraft):
    """The stop's length is the model's; a copy may be longer, up to what the request has room for."""

    source = "text, else model"

    def __init__(self, stop: Stop, copy_length: int, min_match: int):
        super().__init__(Chain(), stop)
        self.copy_length, self.min_match = copy_length, min_match

    @property
    def max_nodes(self) -> int:
        return max(self.copy_length, super().max_nodes)

    def begin(self, request: Request, first_token: int, evidence: Evidence) -> None:
        super().begin(request, first_token, evidence)
        self.index, self.end = SuffixAutomaton(self.tokens), self.prompt_length + request.max_new_tokens

    def propose(self, max_depth: int) -> DraftTree:
        room = self.end - len(self.tokens) - 1
        if room > 0 and self.index.match >= self.min_match:
            return DraftTree(self.index.continued(min(self.copy_length, room)), phase="copied", by_stop=False)
        return super().propose(max_depth)

    def observe(self, feedback: Feedback) -> None:
        super().observe(feedback)
        self.index.extend(feedback.verdict.tokens)

    def memory_bytes(self) -> dict[str, int]:
        return {**super().memory_bytes(), "text_index": self.index.nbytes}
