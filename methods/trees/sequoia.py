"""Sequoia (Chen et al. 2402.12374): the best static tree for a draft's acceptance by rank and for the machine's costs.

`acceptance[r]` is the probability that of a node's children the (r + 1)-th is the accepted one, wherever the node stands. The
expected number of accepted tokens of a tree is then the sum over its nodes of the products along their paths. The paper finds
the best tree of every size and depth by dynamic programming; where acceptance falls with the rank, taking the best next node
again and again gives the same trees (tests hold both side by side), so the static trees' builder does it. Size and depth are
those with most emitted tokens per second: depth forwards of the draft and one of the target over all rows, measured.

Children are drawn without replacement, as in the paper (rule `recursive_without_replacement`, in law); under the match rules
they are the likeliest tokens (token for token). Ours: `acceptance: auto` is measured when the method is opened, on text that
the target writes under the run's law from eight single tokens, since a run has no prompts to spare; measured once per run
and part of its facts. Who has measured his own data gives the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from specbench.method import (
    MOST_NODES,
    ConfigError,
    Contract,
    DraftTree,
    Drawn,
    Evidence,
    Method,
    ModelDraft,
    Request,
    Rule,
    Setting,
    Stop,
    exact_rules,
    number,
    whole,
)
from specbench.parts.shapes.cost import fill, measure_costs
from specbench.parts.shapes.drawn import children_of
from specbench.parts.shapes.static import (
    Node,
    build_static_tree,
    choose_num_nodes,
    expected_accepted_length,
    never_falling,
    seconds_of_rows,
)

WIDTH = 8  # children of a node at most, and ranks that acceptance is measured for
TEXTS, TOKENS = 8, 16  # of the target's own, that acceptance is measured on


class Sequoia(Method):
    """draft_length: depth at most. num_nodes: a number, or auto (by costs). acceptance: a list by rank, or auto (measured).

    rule: greedy_match | sample_match | delta | recursive_without_replacement; null = match.
    """

    def __init__(
        self,
        *,
        draft_length: int = 6,
        num_nodes: int | str = "auto",
        acceptance: Sequence[float] | str = "auto",
        rule: str | Rule | None = None,
    ):
        whole("method.draft_length", draft_length, 1, high=MOST_NODES)
        whole("method.num_nodes", num_nodes, 1, auto=True, high=MOST_NODES)
        if acceptance != "auto":
            remedy = "possible: auto, or probabilities by rank that fall and sum to at most 1, such as [0.6,0.15,0.05]"
            if isinstance(acceptance, str) or not isinstance(acceptance, Sequence) or not acceptance:
                raise ConfigError("method.acceptance", acceptance, remedy)
            for chance in acceptance:
                number("method.acceptance", chance, 0.0, 1.0, remedy.removeprefix("possible: "))
            if sum(map(float, acceptance)) > 1.0 + 1e-9 or sorted(acceptance, reverse=True) != list(acceptance):
                raise ConfigError("method.acceptance", list(acceptance), remedy)
        stop = Stop(draft_length)
        rules = [*exact_rules(trees=True), "recursive_without_replacement"]
        drafter = BestTreeDraft(stop, num_nodes, acceptance)
        super().__init__(drafter, rule=rule, rules=rules, stop=stop, draft_length=draft_length)


class BestTreeDraft(ModelDraft):
    """A draft model whose static tree is chosen when it is opened."""

    def __init__(self, stop: Stop, num_nodes: int | str, acceptance: Sequence[float] | str):
        super().__init__(Drawn([(0,), (1,)], Contract.WITHOUT_REPLACEMENT), stop)
        self.num_nodes, self.given = num_nodes, acceptance
        self._facts: dict[str, float | int | str] = {}

    def open(self, setting: Setting) -> None:
        super().open(setting)
        self.target = setting.target
        self.acceptance = self._measured(setting) if isinstance(self.given, str) else list(self.given)
        self.settle()

    def settle(self) -> None:
        nodes, self._facts = self._best(self.acceptance)
        self.shape = Drawn(nodes, Contract.WITHOUT_REPLACEMENT)
        self._facts |= {f"acceptance_of_rank_{rank}": round(chance, 4) for rank, chance in enumerate(self.acceptance)}

    @torch.inference_mode()
    def _measured(self, setting: Setting) -> list[float]:
        """Acceptance by rank on the target's own text, each position judged by the rule on a tree of depth one."""
        runtime, target, rule = setting.runtime, setting.target, setting.rule
        counts, judged = [0] * WIDTH, 0
        for text in range(TEXTS):
            first = (1 + text * runtime.target.vocab_size // TEXTS) % runtime.target.vocab_size
            request = Request(f"acceptance {text}", 0, (first,), TOKENS, runtime.eos_ids, text)
            self.choice.begin(request)
            coins = rule.coins(request.noise_key)
            target.start(TOKENS)
            self.session.start(TOKENS)
            token = first
            for position in range(TOKENS):
                p, q = target.feed([token]), self.session.feed([token])
                drawn, laws = children_of(self.choice, q, position, WIDTH, Contract.WITHOUT_REPLACEMENT)
                tokens = drawn[0]
                tree = DraftTree(tokens, [-1] * len(tokens))
                if laws is not None:
                    tree = DraftTree(tokens, tree.parents, Contract.WITHOUT_REPLACEMENT, [laws[0]] * len(tokens))
                evidence = Evidence(p.expand(1 + len(tokens), -1), {})
                verdict = rule.judge(tree, evidence, runtime.law, position, request.noise_key, coins)
                judged += 1
                if verdict.path:
                    counts[verdict.path[0]] += 1
                token = verdict.tokens[0]
                if token in runtime.eos_ids:
                    break
        target.start(0)
        self.session.start(0)
        # A tree takes ranks in order: where chance made a later one look better, both get the mean.
        return [-value for value in never_falling([-count / judged for count in counts])]

    def _best(self, acceptance: list[float]) -> tuple[list[Node], dict[str, float | int | str]]:
        """The nodes, and what they were chosen by. One node at least: this is a method that drafts."""
        if isinstance(self.num_nodes, int):
            nodes = build_static_tree([acceptance] * self.depth, self.num_nodes) or [(0,)]
            return nodes, {"tree_nodes": len(nodes), "tree_depth": max(map(len, nodes))}
        self.context = fill(self.session, 1)
        rows, (draft_seconds,) = measure_costs(self.target, [self._draft_once])
        self.session.start(0)
        best: list[Node] = [(0,)]
        best_rate = 0.0
        for depth in range(1, self.depth + 1):
            levels = [acceptance] * depth
            nodes = build_static_tree(levels, choose_num_nodes(levels, rows, depth * draft_seconds)) or [(0,)]
            accepted = expected_accepted_length(levels, nodes)
            rate = (1.0 + accepted) / (max(map(len, nodes)) * draft_seconds + seconds_of_rows(rows, 1 + len(nodes)))
            if rate > best_rate:
                best, best_rate = nodes, rate
        depth = max(map(len, best))
        expected = 1.0 + expected_accepted_length([acceptance] * depth, best)
        return best, {
            "tree_nodes": len(best),
            "tree_depth": depth,
            "expected_emitted_per_round": round(expected, 3),
            "expected_speedup": round(best_rate * rows[1], 3),
            "draft_forward_seconds": draft_seconds,
            **{f"target_seconds_of_{count}_rows": seconds for count, seconds in rows.items()},
        }

    def _draft_once(self) -> None:
        """One forward of the draft behind some text, its best token read."""
        self.session.feed([1 % self.model.vocab_size]).argmax(-1).tolist()
        self.session.rollback(self.context)

    def facts(self) -> dict[str, float | int | str]:
        return self._facts
