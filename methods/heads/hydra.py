"""Hydra (Ankner et al. 2402.05109): heads in sequence; head k sees the tokens drafted before its own on the path.

Head k gets h[t] and the target's embeddings of tokens t + 1 to t + k (the pending one and the path down to its node) and
guesses token t + 1 + k. Each node is thus a guess given its parents, where Medusa's is given none; the price is one pass of a
small network per level instead of one in all. The tree is static as in Medusa, all nodes of a level are computed together.

By default the heads share the target's LM head; `own_lm_head` is the paper's form. Of the paper's Hydra++ the teacher loss
(`objective: soft`) and the deeper heads (`num_layers`) are here, the attention layer over the prefix is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from specbench.method import MOST_NODES, Method, Rule, Stop, exact_rules, make_stop, whole, with_typical
from specbench.parts.drafts.heads import HeadDraft
from specbench.parts.heads.base import Pick, TargetParts, TreeHeads, residual, shifted
from specbench.parts.heads.loss import check_loss_options, depth_loss
from specbench.parts.shapes.plan import Level


class HydraHead(nn.Module):
    """One head: h + R x + SiLU(W x) with x = [h; embeddings of the path], then further residual blocks, each of its own."""

    def __init__(self, width: int, inputs: int, num_layers: int):
        super().__init__()
        self.layers = nn.ModuleDict({"skip": nn.Linear(inputs, width, bias=False), "first": nn.Linear(inputs, width)})
        for number in range(1, num_layers):
            self.layers[f"block_{number}"] = nn.Linear(width, width)
        # The embeddings' share starts at random, what the head adds to h at zero: a new head says what the target said before.
        for name, linear in self.layers.items():
            if name != "first":
                nn.init.zeros_(cast(Tensor, linear.weight))
            if getattr(linear, "bias", None) is not None:
                nn.init.zeros_(cast(Tensor, linear.bias))

    def forward(self, hidden: Tensor, path: Tensor, scale: float) -> Tensor:
        """hidden [..., width], path [..., k * embedding width], which is scaled first; returns [..., width]."""
        skip, first, *blocks = self.layers.values()
        state = residual(hidden, first, skip, path, scale)
        for linear in blocks:
            state = residual(state, linear)
        return state


class HydraHeads(TreeHeads):
    """num_heads: depths guessed. num_layers: layers of a head's network. own_lm_head: an LM head of its own per head (starts as
    the target's). decay, objective: see `depth_loss`.
    """

    family = "hydra"
    level_by_level = True

    def __init__(
        self,
        target: TargetParts,
        *,
        num_heads: int = 4,
        num_layers: int = 2,
        own_lm_head: bool = False,
        decay: float = 0.8,
        objective: str = "soft",
    ):
        super().__init__(target)
        check_loss_options(decay, objective)
        self.keep_options(num_heads, num_layers, own_lm_head, decay, objective)
        weight: Any = target.embedding.weight
        embedding_width = int(weight.shape[1])
        # Embeddings are far smaller than last hidden states in many models: scaled, their part is learned as fast.
        self.embedding_scale = 1.0 / max(float(weight.detach().float().square().mean().sqrt()), 1e-6)
        self.heads = nn.ModuleList(
            HydraHead(target.width, target.width + k * embedding_width, num_layers) for k in range(1, num_heads + 1)
        )
        self._of_depth = tuple(self.heads)  # a module's own list is slow to ask
        self.lm_heads = nn.ModuleList()
        if own_lm_head:
            for _ in range(num_heads):
                head = nn.Linear(target.width, target.vocab_size, bias=False)
                with torch.no_grad():
                    head.weight.copy_(cast(Tensor, target.lm_head.weight))
                self.lm_heads.append(head)

    @property
    def max_depth(self) -> int:
        return len(self.heads)

    def logits(self, hidden: Tensor, path: Tensor, depth: int) -> Tensor:
        """What head `depth` says, [..., vocab], from h [..., width] and its path [..., depth * embedding width]."""
        state = self._of_depth[depth - 1].forward(hidden, path, self.embedding_scale)
        return self.lm_heads[depth - 1](state) if self.options["own_lm_head"] else self.target.guess(state)

    def on_text(self, ids: Tensor, hidden: Tensor, depth: int) -> Tensor:
        """The same, [rows, length, vocab], with the text's tokens as path; ids [rows, length], hidden [rows, length, width]."""
        path = [self.target.embed(shifted(ids, k).clamp(min=0)).to(hidden.dtype) for k in range(1, depth + 1)]
        return self.logits(hidden, torch.cat(path, dim=-1), depth)

    def fill(self, hidden: Tensor, pending: int, levels: Sequence[Level], pick: Pick) -> None:
        # paths [nodes of the level, depth * embedding width]: the root's is the pending token alone.
        paths = self.target.embed([pending])
        for level in levels:
            above = paths if level.is_whole else paths.index_select(0, level.above)
            tokens = pick(self.logits(hidden, above, level.depth), level)
            if level.depth < len(levels):
                paths = torch.cat([above.index_select(0, level.parent), self.target.embed(tokens)], dim=-1)

    def loss(self, ids: Tensor, hidden: Tensor) -> Tensor:
        depths = range(1, self.max_depth + 1)
        decay, objective = self.options["decay"], self.options["objective"]
        return depth_loss(lambda k: self.on_text(ids, hidden, k), depths, ids, hidden, self.target, decay, objective)

    def ranks(self, ids: Tensor, hidden: Tensor) -> Tensor:
        depths = range(1, self.max_depth + 1)
        return torch.stack([self.target.rank(self.on_text(ids, hidden, k), shifted(ids, k + 1)) for k in depths])


class Hydra(Method):
    """Options: as Medusa's, without a published tree."""

    heads_class = HydraHeads

    def __init__(
        self,
        *,
        heads: str | None = None,
        tree: str | Sequence[Sequence[int]] = "auto",
        num_nodes: int | str = "auto",
        stop: str | Stop | None = None,
        rule: str | Rule | None = None,
        epsilon: float = 0.09,
        delta: float = 0.3,
    ):
        whole("method.num_nodes", num_nodes, 1, auto=True, high=MOST_NODES)
        drafter = HeadDraft(HydraHeads, heads, tree, num_nodes)
        rule, rules = with_typical(rule, epsilon, delta), [*exact_rules(trees=True), "typical"]
        super().__init__(drafter, rule=rule, rules=rules, stop=make_stop(stop, None, at_once=True))
