"""One static tree per round, filled by heads on the target's last hidden state (Medusa, Hydra).

The tree's shape is chosen once: given, or built from how often each head's candidates were right on calibration text and from
what rounds of several levels and sizes cost on this machine (`shapes.static`). A round fills it with tokens; the target
verifies all nodes in one forward. Exact under the match rules and `delta`, since the children are a fixed set; `typical` is
lossy.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specbench.config.options import ConfigError, whole
from specbench.config.specs import PairSpec
from specbench.engine.ranks import NO_LAW, best
from specbench.engine.request import Request
from specbench.engine.sampling import keyed_gumbel
from specbench.engine.tree import EMPTY, DraftTree, Evidence, Feedback
from specbench.parts.contracts import Drafter, Needs, Setting
from specbench.parts.heads.base import TreeHeads
from specbench.parts.heads.files import shown
from specbench.parts.heads.stored import look_up_heads, open_heads, refuse_deeper_tree
from specbench.parts.shapes.cost import MAX_NODES, measure_rounds
from specbench.parts.shapes.plan import Level, TreePlan
from specbench.parts.shapes.static import Node, build_static_tree, expected_accepted_length, fastest_tree

SIZES = (1, 3, 8, 16, 32)  # nodes of the trees that are measured, beside the largest; between them lies a straight line
TAP = -1  # the LM head's input


class HeadDraft(Drafter):
    """heads: folder, builtin:<part>, Hub repository or null (the built-in pair's). tree: auto, a preset's name, or a list of
    paths. num_nodes: auto (by measured cost) or a number, for tree=auto. presets: trees by name.
    """

    needs = Needs(taps=(TAP,))
    source, form = "heads", "static tree"

    def __init__(
        self,
        family: type[TreeHeads],
        heads: str | None,
        tree: str | Sequence[Sequence[int]],
        num_nodes: int | str,
        presets: Mapping[str, Sequence[Node]] | None = None,
    ):
        self.family, self.heads_name, self.num_nodes, self.presets = family, heads, num_nodes, presets or {}
        whole("method.num_nodes", num_nodes, 1, auto=True)
        self.tree, self.given = tree, None if tree == "auto" else self._parse(tree)
        self.plan: TreePlan | None = None
        self.noise: Tensor | None = None  # of the round's positions, [depth, vocab], where the target's is shared
        self._facts: dict[str, float | int | str] = {}

    def _parse(self, tree: Any) -> list[Node]:
        if isinstance(tree, str):
            if tree not in self.presets:
                raise ConfigError("method.tree", tree, f"possible: {', '.join(['auto', *self.presets])}, or a list of paths")
            return list(self.presets[tree])
        remedy = "give paths of ranks from 0 up such as [[0], [1], [0, 0]], every beginning of a path too and none twice"
        paths = tree if isinstance(tree, Sequence) else []
        nodes = [tuple(path) if isinstance(path, Sequence) and not isinstance(path, str) else () for path in paths]
        ranks = [rank for node in nodes for rank in node]
        if not nodes or () in nodes or not all(type(rank) is int and rank >= 0 for rank in ranks):
            raise ConfigError("method.tree", tree, remedy)
        try:
            expected_accepted_length([[0.0] * (1 + max(ranks))] * max(map(len, nodes)), nodes)
        except ValueError as error:
            raise ConfigError("method.tree", tree, remedy) from error
        return nodes

    @property
    def max_nodes(self) -> int:
        return len(self.plan.nodes) if self.plan is not None else 0

    def look_up(self, pair: PairSpec) -> dict[str, Path]:
        found = look_up_heads(self.family, self.heads_name, pair.target)
        refuse_deeper_tree(self.family, self.given, self.tree, found["heads"])
        return found

    def open(self, setting: Setting) -> None:
        runtime, self.target = setting.runtime, setting.target
        self.heads, folder = open_heads(self.family, self.heads_name, runtime)
        self._facts = {"heads": shown(self.heads_name, folder)}
        self.row_of: Callable[[Tensor, int], Tensor] = lambda rows, number: rows[number : number + 1]
        if runtime.target.native is not None:
            from specbench.engine.backends.native.linear import RowOf

            self.row_of = RowOf(self.heads.target.width)
        self.law = runtime.law
        self.shares_noise = not runtime.law.greedy and setting.rule.reads == "choice"
        self.noise = None
        self.vocab_size = min(runtime.target.vocab_size, self.heads.target.vocab_size)
        self.num_guessed = min(self.vocab_size, self.heads.target.num_guessed)
        self._draft_by(self.given if self.given is not None else self._build())

    def settle(self) -> None:
        if self.given is None and self.num_nodes == "auto":
            self._draft_by(self._build())

    def _draft_by(self, nodes: list[Node]) -> None:
        """Raises ConfigError for a tree that these heads, or this target, cannot fill."""
        chains_only = self.target.model.tree_refusal
        if chains_only is not None and any(choice for node in nodes for choice in node):
            raise ConfigError("method.tree", self.tree, f"the target takes draft chains only ({chains_only}): use tree=auto")
        refuse_deeper_tree(self.family, nodes, self.tree, self.heads)
        deepest, widest = max(map(len, nodes)), 1 + max(map(max, nodes))
        if widest > self.num_guessed:
            raise ConfigError("method.tree", self.tree, f"{widest} candidates of a head, and {self.num_guessed} tokens")
        self.plan = TreePlan(nodes, self.target.model.device)
        self._facts |= {"tree_nodes": len(nodes), "tree_depth": deepest}

    def _build(self) -> list[Node]:
        """The tree for this machine. Raises ConfigError for heads whose accuracies nobody measured."""
        accuracies = self.heads.calibration.get("accuracies")
        if not accuracies:
            remedy = "these heads came without measured accuracies: name a preset or give paths"
            raise ConfigError("method.tree", "auto", f"{remedy} ({', '.join(self.presets) or 'no preset'})")
        accuracies = [row[: self.num_guessed] for row in accuracies]
        if self.target.model.tree_refusal is not None:
            accuracies = [row[:1] for row in accuracies]
        if self.num_nodes != "auto":
            assert isinstance(self.num_nodes, int)
            return self._floor(build_static_tree(accuracies, self.num_nodes))
        plans = list(self._measured_plans(accuracies))
        plain, *seconds = measure_rounds(self.target, [lambda: EMPTY, *(partial(self._draft_once, plan) for _, plan in plans)])
        by_levels: list[dict[int, float]] = [{} for _ in accuracies]
        for (levels, plan), cost in zip(plans, seconds, strict=True):
            by_levels[levels - 1][len(plan.nodes)] = cost
        best = fastest_tree(accuracies, plain, by_levels)
        self._facts |= {
            # 0: by these measurements nothing beats plain decoding; one is drafted all the same
            "best_num_nodes": len(best.nodes),
            "expected_accepted_per_round": round(best.expected_accepted, 3),
            "expected_speedup": round(best.tokens_per_second * plain, 3),
            "plain_round_seconds": plain,
            **{
                f"round_seconds_of_{size}_nodes_in_{levels}_levels": cost
                for levels, costs in enumerate(by_levels, start=1)
                for size, cost in costs.items()
            },
        }
        return best.nodes or self._floor(build_static_tree(accuracies, 1))

    def _measured_plans(self, accuracies: list[list[float]]) -> Iterator[tuple[int, TreePlan]]:
        """The best trees of 1, 2 ... levels in a few sizes: a level more costs drafting, a node more costs a row."""
        for levels in range(1, len(accuracies) + 1):
            nodes = self._floor(build_static_tree(accuracies[:levels], MAX_NODES))
            for size in [*(size for size in SIZES if size < len(nodes)), len(nodes)]:
                yield levels, TreePlan(nodes[:size], self.target.model.device)

    def _draft_once(self, plan: TreePlan) -> DraftTree:
        """What a round with this plan drafts, after any token."""
        self.plan = plan
        hidden = torch.zeros(1, self.heads.target.width, device=self.heads.target.device, dtype=self.heads.target.dtype)
        return plan.tree(self.filled(hidden, 0, plan.levels), plan.depth, 1)

    @staticmethod
    def _floor(nodes: list[Node]) -> list[Node]:
        """Heads that were never right draft their first choice all the same."""
        return nodes or [(0,)]

    def begin(self, request: Request, first_token: int, evidence: Evidence) -> None:
        self.pending, self.num_output, self.noise_key = first_token, 1, request.noise_key
        self.hidden = evidence.taps[TAP][-1:]  # [1, width], the LM head's input at the last row that stands

    def observe(self, feedback: Feedback) -> None:
        verdict = feedback.verdict
        self.pending = verdict.extra
        self.num_output += len(verdict.tokens)
        last = verdict.path[-1] + 1 if verdict.path else 0
        self.hidden = self.row_of(feedback.evidence.taps[TAP], last)

    def propose(self, max_depth: int) -> DraftTree:
        assert self.plan is not None
        depth = min(self.plan.depth, max_depth)
        if depth < 1:
            return EMPTY
        if self.shares_noise:
            positions = range(self.num_output, self.num_output + depth)
            self.noise = keyed_gumbel(self.noise_key, positions, self.vocab_size, self.target.model.device)
        tokens = self.filled(self.hidden, self.pending, self.plan.levels[:depth])
        return self.plan.tree(tokens, depth, depth if self.family.level_by_level else 1)

    def filled(self, hidden: Tensor, pending: int, levels: Sequence[Level]) -> list[int]:
        """The heads' tokens of all nodes of the levels, from h [1, width] and the pending token.

        Raises ValueError for logits that make no law (NaN, infinity).
        """
        self._tokens: list[list[int]] = []
        self._unread: list[tuple[Tensor, Tensor]] = []
        self.heads.fill(hidden, pending, levels, self.pick)
        if self._unread:
            tokens, heights = (torch.cat(parts).tolist() for parts in zip(*self._unread, strict=True))
            _refuse_no_law(heights)
            return tokens
        return self._tokens[0] if len(self._tokens) == 1 else [*itertools.chain(*self._tokens)]

    def pick(self, logits: Tensor, level: Level) -> list[int] | Tensor:
        """Fill a level: the ids of its nodes, by rank among those that the target may emit. See `TreeHeads.fill`.

        logits [rows, ids guessed among]. At a temperature, under sample_match, the target's own keyed noise of that position is
        added: the token that the target will choose is then among the first far more often than the likeliest tokens are.
        Of equals a CPU's native engine takes the smaller id first, as `rank_of` does and the target's own choice.
        """
        reduced = self.heads.target.reduced
        if logits.shape[-1] != self.num_guessed:
            logits = logits[:, : self.num_guessed]
        if self.noise is not None:
            noise = self.noise[level.depth - 1]
            noise = noise if reduced is None else noise[reduced.ids]
            logits = logits.float() / self.law.temperature + noise
        if logits.is_cpu:
            ids, scores = best(logits, level.width, names=None if reduced is None else reduced.ids)
            _refuse_no_law(scores[:: level.width])
            self._tokens.append(level.picked(ids))
            return self._tokens[-1]
        found = logits.topk(level.width, dim=-1)  # on a device: read once, when all levels are filled
        tokens = level.pick(self.heads.target.ids_of(found.indices))
        self._unread.append((tokens, found.values[:, 0]))  # NaN counts as the largest
        return tokens

    def memory_bytes(self) -> dict[str, int]:
        size = sum(p.numel() * p.element_size() for p in itertools.chain(self.heads.parameters(), self.heads.buffers()))
        return {"heads_weights": size}

    def facts(self) -> dict[str, float | int | str]:
        return self._facts


def _refuse_no_law(heights: Sequence[float]) -> None:
    """heights: the greatest score of each row."""
    if not all(map(math.isfinite, heights)):
        raise ValueError(NO_LAW)
