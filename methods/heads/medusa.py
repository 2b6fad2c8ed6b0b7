"""Medusa (Cai et al. 2401.10774): heads on the target's last hidden state guess the tokens after the next, each by itself.

Head k looks at h[t] alone and guesses token t + 1 + k; the best guesses of all heads fill a static tree. Because a head does
not see what stands before its guess, the tree needs breadth. Medusa-1: the target is frozen, so its output can stay its own.

By default the heads share the target's LM head (a head is then one small residual block); `own_lm_head` is the paper's form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from specbench.method import MOST_NODES, ConfigError, Method, Rule, Stop, exact_rules, make_stop, whole, with_typical
from specbench.parts.described import read_description
from specbench.parts.drafts.heads import HeadDraft
from specbench.parts.heads.base import Pick, TargetParts, TreeHeads, residual, shifted
from specbench.parts.heads.loss import check_loss_options, depth_loss
from specbench.parts.shapes.plan import Level
from specbench.parts.shapes.static import Node

# The tree of 63 nodes that the authors publish for their 7B heads (FasterDecoding/Medusa, `mc_sim_7b_63`), as first, second ...
# choice of heads 1 to 4, written by prefix: (0, 2) stands for the third candidate of head 2 below the first of head 1.
_PUBLISHED: dict[Node, int] = {
    (): 10,  # number of children 0, 1, 2 ... below each prefix
    (0,): 10,
    (1,): 7,
    (2,): 3,
    (3,): 2,
    (4,): 1,
    (5,): 1,
    (6,): 1,
    (7,): 1,
    (8,): 1,
    (9,): 1,
    (0, 0): 10,
    (0, 1): 3,
    (0, 2): 2,
    (0, 3): 1,
    (0, 4): 1,
    (0, 5): 1,
    (0, 6): 1,
    (0, 7): 1,
    (1, 0): 2,
    (2, 0): 1,
    (0, 0, 0): 2,
}
MC_SIM_7B_63: list[Node] = [(*prefix, choice) for prefix, count in _PUBLISHED.items() for choice in range(count)]


class MedusaHeads(TreeHeads):
    """num_heads: tokens guessed ahead. num_layers: residual blocks a head. own_lm_head: an LM head of its own per head (starts
    as the target's). decay, objective: see `depth_loss`.
    """

    family = "medusa"

    def __init__(
        self,
        target: TargetParts,
        *,
        num_heads: int = 4,
        num_layers: int = 1,
        own_lm_head: bool = False,
        decay: float = 0.8,
        objective: str = "soft",
    ):
        super().__init__(target)
        check_loss_options(decay, objective)
        self.keep_options(num_heads, num_layers, own_lm_head, decay, objective)
        width = target.width
        self.layers = nn.ModuleList(nn.ModuleList(nn.Linear(width, width) for _ in range(num_layers)) for _ in range(num_heads))
        self._blocks: tuple[Any, ...] = tuple(self.layers)  # a module's own lists are slow to ask
        for linear in (linear for head in self._blocks for linear in head):
            nn.init.zeros_(linear.weight)  # a new head says what the target said one token earlier
            nn.init.zeros_(linear.bias)
        self.lm_heads = nn.ModuleList()
        if own_lm_head:
            for _ in range(num_heads):
                head = nn.Linear(width, target.vocab_size, bias=False)
                with torch.no_grad():
                    head.weight.copy_(cast(Tensor, target.lm_head.weight))
                self.lm_heads.append(head)

    @property
    def max_depth(self) -> int:
        return len(self.layers)

    def state(self, hidden: Tensor, depth: int) -> Tensor:
        """h [..., width] behind the residual blocks of head `depth`, [..., width]."""
        for linear in self._blocks[depth - 1]:
            hidden = residual(hidden, linear)
        return hidden

    def logits(self, hidden: Tensor, depth: int) -> Tensor:
        """What head `depth` says, [..., vocab], from h [..., width]."""
        lm_head = self.lm_heads[depth - 1] if self.options["own_lm_head"] else self.target.guess
        return lm_head(self.state(hidden, depth))

    def all_logits(self, hidden: Tensor, depth: int) -> Tensor:
        """What heads 1 to `depth` say, [depth, vocab], from h [1, width]; a shared LM head is read once for all of them."""
        if self.options["own_lm_head"]:  # the list itself is slow to ask
            return torch.cat([self.logits(hidden, k) for k in range(1, depth + 1)])
        states = [self.state(hidden, k) for k in range(1, depth + 1)]
        return self.target.guess(states[0] if depth == 1 else torch.cat(states))

    def fill(self, hidden: Tensor, pending: int, levels: Sequence[Level], pick: Pick) -> None:
        logits = self.all_logits(hidden, len(levels))
        for row, level in zip([logits] if len(levels) == 1 else logits.split(1), levels, strict=True):
            pick(row, level)

    def loss(self, ids: Tensor, hidden: Tensor) -> Tensor:
        depths = range(1, self.max_depth + 1)
        decay, objective = self.options["decay"], self.options["objective"]
        return depth_loss(lambda k: self.logits(hidden, k), depths, ids, hidden, self.target, decay, objective)

    def ranks(self, ids: Tensor, hidden: Tensor) -> Tensor:
        depths = range(1, self.max_depth + 1)
        return torch.stack([self.target.rank(self.logits(hidden, k), shifted(ids, k + 1)) for k in depths])

    @classmethod
    def from_published(cls, folder: Path, target: TargetParts) -> MedusaHeads | None:
        """The authors' format: config.json (medusa_num_heads, medusa_num_layers) and medusa_lm_head.safetensors or .pt.

        A .pt file is read as weights only. Raises ConfigError (method.heads) for files that are damaged, not of that form or
        not of the target's shape.
        """
        file = _published_file(folder)
        if file is None:
            return None
        try:
            state = _READERS[file.suffix](file)
            numbers = sorted({(int(n.split(".")[0]), int(n.split(".")[1])) for n in state})
            num_heads, last = 1 + max(h for h, _ in numbers), max(layer for _, layer in numbers)
            own = f"0.{last}.weight" in state  # the last place is the LM head; older heads share the target's and have none
            heads = cls(target, num_heads=num_heads, num_layers=last if own else last + 1, own_lm_head=own)
            renamed = {}
            for name, value in state.items():
                head, layer, rest = name.split(".", 2)
                if rest == "weight":
                    renamed[f"lm_heads.{head}.weight"] = value
                else:
                    renamed[f"layers.{head}.{layer}.{rest.removeprefix('linear.')}"] = value
            heads.load_state_dict(renamed)
            config = folder / "config.json"
            said = read_description(config, "method.heads", {}) if config.is_file() else {}
            named = said.get("medusa_num_heads", num_heads)
        except Exception as error:  # safetensors, pickle and torch raise several kinds
            reason = " ".join(str(error).split())[:200]
            raise ConfigError("method.heads", str(file), f"no Medusa heads that fit pair.target: {reason}") from error
        if named > num_heads:
            raise ConfigError("method.heads", str(folder), f"config.json names {named} heads, the weights have {num_heads}")
        return heads

    @classmethod
    def published_depth(cls, folder: Path) -> int | None:
        """By the names of the weights: config.json may say fewer than there are. What is damaged is said on loading."""
        file = _published_file(folder)
        try:
            return None if file is None else 1 + max(int(name.partition(".")[0]) for name in _NAMES[file.suffix](file))
        except Exception:  # see `from_published`
            return None


def _published_file(folder: Path) -> Path | None:
    return next(filter(Path.is_file, (folder / f"medusa_lm_head{suffix}" for suffix in _READERS)), None)


def _safetensors_names(file: Path) -> Iterable[str]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        return list(opened.keys())


def _safetensors(file: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(file)


_READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    ".safetensors": _safetensors,
    ".pt": partial(torch.load, map_location="cpu", weights_only=True),  # a pickle could run code: weights only cannot
}
_NAMES: dict[str, Callable[[Path], Iterable[str]]] = {  # no weight is read
    ".safetensors": _safetensors_names,
    ".pt": partial(torch.load, map_location="meta", weights_only=True),
}


class Medusa(Method):
    """heads: folder, builtin:<part>, Hub repository or null (the built-in pair's). tree: auto, mc_sim_7b_63 (needs four heads),
    or a list of paths. num_nodes: auto (by measured cost) or a number, for tree=auto. stop: caps the levels of a round. rule:
    greedy_match | sample_match | delta | typical; null = match. epsilon, delta: typical acceptance's threshold.
    """

    heads_class = MedusaHeads

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
        drafter = HeadDraft(MedusaHeads, heads, tree, num_nodes, {"mc_sim_7b_63": MC_SIM_7B_63})
        rule, rules = with_typical(rule, epsilon, delta), [*exact_rules(trees=True), "typical"]
        super().__init__(drafter, rule=rule, rules=rules, stop=make_stop(stop, None, at_once=True))
