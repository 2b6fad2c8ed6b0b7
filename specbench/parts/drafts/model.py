"""A draft model in the target's process: its sequence, and the trees that a shape grows on it.

After a fully accepted round the draft has not seen its own last token: it is fed that token and the target's together, in the
forward that begins the next draft.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from specbench.config.options import ConfigError
from specbench.engine.branching import Branching
from specbench.engine.request import NOBODYS, Request
from specbench.engine.session import Session
from specbench.engine.target import held_bytes, open_branching, open_session
from specbench.engine.tree import EMPTY, DraftTree, Evidence, Feedback
from specbench.parts.contracts import Drafter, Needs, Setting, Shape, Stop
from specbench.parts.drafts.choice import Choice
from specbench.parts.shapes.cost import fill


class ModelDraft(Drafter):
    """A `Source` for its shape. stop: the method's; its draft_length is the depth at most.

    Raises ConfigError without a draft model, and for a shape with branches on a draft or target that takes chains only.
    """

    needs = Needs(draft="local")
    source = "model"

    def __init__(self, shape: Shape, stop: Stop):
        self.shape, self.stop, self.form = shape, stop, shape.form

    @property
    def max_nodes(self) -> int:
        return self.shape.max_nodes(self.depth)

    @property
    def depth(self) -> int:
        """Depth of a proposal at most, as far as it is known before a run."""
        assert self.stop.draft_length is not None
        return self.stop.draft_length

    def open(self, setting: Setting) -> None:
        runtime = setting.runtime
        if runtime.draft is None:
            raise ConfigError("pair.draft", None, "this method drafts with a model: name one")
        self.model = runtime.draft
        if self.model.is_recurrent:
            name = None if runtime.pair.draft is None else runtime.pair.draft.name
            raise ConfigError("pair.draft", name, "keeps a state that cannot be cut back: it can be a target, and no draft")
        if self.shape.branches:
            for role, model in (("draft", self.model), ("target", runtime.target)):
                if model.tree_refusal is not None:
                    remedy = f"the {role} takes chains only ({model.tree_refusal}): use chain"
                    raise ConfigError("method.shape", type(self.shape).__name__.lower(), remedy)
            self.session: Session = open_branching(self.model)
        else:
            self.session = open_session(self.model, self.stop.draft_taps)
        self.choice = Choice(runtime.law, setting.rule, runtime.target.vocab_size, self.model.device)
        self.max_new_tokens = runtime.max_new_tokens

    def announce(self, request: Request) -> None:
        self.model.expect(request)
        length = len(request.prompt_ids) + request.max_new_tokens
        self.session.start(length + self.rows_behind(request.max_new_tokens))  # before the clock: a backend may compile now

    def begin(self, request: Request, first_token: int, evidence: Evidence) -> None:
        self.prompt_length = len(request.prompt_ids)
        self.tokens = [*request.prompt_ids, first_token]  # everything committed
        self.grown: dict[
            tuple[int, int], int
        ] = {}  # (parent, token): the row below the trunk, with branches; of equals the first
        self.session.feed(request.prompt_ids, last_only=True)
        self.choice.begin(request)

    def rows_behind(self, max_new_tokens: int) -> int:
        """Rows laid out in the draft's cache behind prompt and output: a stop may draft on to the end of the sample, and a tree
        keeps its branches' rows beside that."""
        return 2 + (self.shape.max_rows(max_new_tokens) if self.shape.branches else self.depth)

    def propose(self, max_depth: int) -> DraftTree:
        if max_depth < 1:
            return EMPTY
        tree = self.shape.grow(self, max_depth, self.choice, len(self.tokens) - self.prompt_length, self.stop)
        tree.num_forwards = self.num_forwards
        tree.lead_with_first_path()
        return tree

    def rehearsal(self, longest: int) -> Callable[[int], DraftTree]:
        context = fill(self.session, 1 + longest)
        self.tokens, self.prompt_length = [0] * (context + 1), context
        self.choice.begin(NOBODYS)

        def draft(length: int) -> DraftTree:
            tree = EMPTY
            if length:
                tree = self.shape.grow(self, length, self.choice, 0, Stop())
                self.session.rollback(context)
            return tree

        if "chain" in self.session.can and not self.shape.branches:
            for length in range(1, longest + 1):
                draft(length)
            self.session.warm(())  # what was met now has its programs before it is timed
        return draft

    # As a source.

    def root(self) -> Tensor:
        logits = self.session.feed(self.tokens[self.session.length :], last_only=True)
        if self.shape.branches:
            assert isinstance(self.session, Branching)
            self.session.branch()
            self.grown = {}
        self.num_forwards = 1
        return logits

    def chain(self, length: int, choice: Choice, position: int) -> Sequence[int] | None:
        tokens = choice.tokens(self.session, self.tokens[self.session.length :], length, position)
        self.num_forwards = 0 if tokens is None else length
        return tokens

    def next(self, tokens: Sequence[int], parents: Sequence[int]) -> Tensor:
        self.num_forwards += 1
        if not isinstance(self.session, Branching):
            return self.session.feed(tokens, last_only=True)
        for row, key in enumerate(zip(parents, tokens, strict=True), len(self.session.row_parents)):
            self.grown.setdefault(key, row)
        return self.session.grow(tokens, parents)

    def observe(self, feedback: Feedback) -> None:
        if isinstance(self.session, Branching) and self.grown:  # nothing was, where there was room for no draft
            self.session.keep(self._path(feedback.verdict.tokens))
            self.grown = {}
        self.tokens += feedback.verdict.tokens
        # What was fed beyond the accepted prefix is wrong; the target's own token is not fed yet.
        if self.session.length >= len(self.tokens):
            self.session.rollback(len(self.tokens) - 1)

    def _path(self, tokens: Sequence[int]) -> list[int]:
        """The grown rows along the committed tokens, as far as they go."""
        path, above = [], -1
        for token in tokens[:-1]:
            row = self.grown.get((above, token))
            if row is None:
                break
            path.append(row)
            above = row
        return path

    def forget(self) -> None:
        """The model's weights changed: what its cache holds is no longer what it would say."""
        self.model.refresh()
        self.session.rollback(0)

    def sessions(self) -> dict[str, Session]:
        return {"draft": self.session}

    def memory_bytes(self) -> dict[str, int]:
        return held_bytes(self.session, "draft")
