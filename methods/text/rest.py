"""REST (He et al. 2311.08252): what followed the end of the text in a corpus is drafted, the most frequent beginnings as a
tree.

The longest end of the text, of at most `longest` tokens, that stands in the datastore is found in its suffix array; of what
follows there (`max_depth` tokens at up to `max_hits` places) the `num_nodes` most frequent beginnings are drafted as one tree.
The datastore is read only, so that nothing is kept between samples: `python -m specbench.train part=datastore` makes one of the
texts of this machine or of a folder, without those that evaluation sets hold. It must be of the target's tokenizer.

Of the paper are the spans (16 down to 2), 64 nodes and ten tokens behind a place. Ours: ties go by depth and id (there by the
order of a hash table); of more hits a thousand are looked at, evenly spread over their order (there the first 5,000);
documents are kept apart; nothing is drafted where nothing is found (there a dummy token). Verified by sampling once per node:
the released code draws once per path, which is biased.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from specbench.method import (
    EMPTY,
    MOST_KEPT,
    MOST_NODES,
    ConfigError,
    Drafter,
    DraftTree,
    Evidence,
    Feedback,
    Method,
    PairSpec,
    Request,
    Rule,
    Setting,
    exact_rules,
    whole,
)
from specbench.parts.drafts.datastore import DEPTH, Datastore


class Rest(Method):
    """datastore: a folder that `part=datastore` made. num_nodes, max_depth: of the tree. longest, shortest: ends looked for.

    max_hits: places looked at. rule: greedy_match | sample_match | delta; null = match.
    """

    reads_datastore: ClassVar[bool] = True

    def __init__(
        self,
        *,
        datastore: str | None = None,
        num_nodes: int = 64,
        max_depth: int = 10,
        longest: int = 16,
        shortest: int = 2,
        max_hits: int = 1000,
        rule: str | Rule | None = None,
    ):
        options = {
            "num_nodes": num_nodes,
            "max_depth": max_depth,
            "longest": longest,
            "shortest": shortest,
            "max_hits": max_hits,
        }
        for name, value in options.items():
            whole(f"method.{name}", value, 1, high=MOST_KEPT if name == "max_hits" else MOST_NODES)
        if longest + max_depth > DEPTH:
            raise ConfigError(
                "method.longest", longest, f"a datastore is sorted by {DEPTH} tokens: at most {DEPTH - max_depth}"
            )
        super().__init__(RestDraft(datastore, **options), rule=rule, rules=exact_rules(trees=True))


class RestDraft(Drafter):
    source, form = "corpus", "tree"

    def __init__(self, name: str | None, num_nodes: int, max_depth: int, longest: int, shortest: int, max_hits: int):
        self.name, self.num_nodes, self.max_depth = name, num_nodes, max_depth
        self.longest, self.shortest, self.max_hits = longest, shortest, max_hits

    @property
    def max_nodes(self) -> int:
        return self.num_nodes

    def look_up(self, pair: PairSpec) -> dict[str, Path]:
        return {"datastore": Datastore.look_up(self.name)}

    def open(self, setting: Setting) -> None:
        target = setting.runtime.target
        self.store = Datastore.load(self.name, target.vocab_size)
        self.branches = target.tree_refusal is None

    def begin(self, request: Request, first_token: int, evidence: Evidence) -> None:
        self.tokens = [*request.prompt_ids, first_token]

    def propose(self, max_depth: int) -> DraftTree:
        if max_depth < 1:
            return EMPTY
        found = self.store.find_longest(self.tokens[-self.longest :], self.longest, self.shortest)
        if not found[0]:
            return EMPTY
        tokens, parents = self.store.continuations(*found, self.max_hits, min(max_depth, self.max_depth), self.num_nodes)
        if not self.branches:  # the most frequent path alone
            path: list[int] = []
            for node, parent in enumerate(parents):
                if parent == (path[-1] if path else -1):
                    path.append(node)
            return DraftTree([tokens[node] for node in path])
        return DraftTree(tokens, parents)

    def observe(self, feedback: Feedback) -> None:
        self.tokens += feedback.verdict.tokens

    def memory_bytes(self) -> dict[str, int]:
        return {"datastore": self.store.nbytes}

    def facts(self) -> dict[str, float | int | str]:
        return {"datastore_tokens": len(self.store.tokens)}
