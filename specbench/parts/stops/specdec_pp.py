"""SpecDec++ (Huang et al. 2405.19715): stop where a trained head expects that some drafted token will be rejected.

Drafting is a Markov decision process whose best policy is a threshold on the chance of at least one rejection (the paper,
section 4). A small head on the draft model's last hidden state says how likely the token that was just *fed* is accepted; the
product over a round's fed tokens is the chance that all stand, and drafting goes on while one minus it is at most `threshold`.
The newest token is never judged before it is shown to the target, so no token is kept back for what it is and every rule stays
exact; two tokens at least are drafted, as in the authors' code.

Of theirs: the head (residual blocks x + SiLU(W x), then two logits; their three blocks share weights by accident, ours do not),
the threshold 0.7, and how it is trained (`specbench/train/acceptance.py`). Ours: at most `draft_length` tokens (theirs 20), and
one head serves greedy and sampled decoding.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from specbench.config.options import ConfigError, number, text, whole
from specbench.parts.contracts import Drafter, Setting, Stop
from specbench.parts.drafts.model import ModelDraft
from specbench.parts.heads.base import Heads, TargetParts
from specbench.parts.heads.files import find_heads, shown, target_hash
from specbench.parts.heads.stored import load_heads

if TYPE_CHECKING:
    from specbench.config.specs import ModelSpec, PairSpec

TAP = -1  # the LM head's input
COMMAND = "python -m specbench.train part=acceptance_head pair=<pair> train.out=<folder>, then a node with head: <folder>"


class AcceptanceHead(Heads):
    """Logits that a token is rejected and accepted, from the draft's hidden state of it; `target` is the draft model here.

    num_layers: residual blocks.
    """

    family = "acceptance"

    def __init__(self, target: TargetParts, *, num_layers: int = 3):
        super().__init__(target)
        whole("heads.num_layers", num_layers, 1)
        self.options = {"num_layers": num_layers}
        self.layers = nn.ModuleList(nn.Linear(target.width, target.width) for _ in range(num_layers))
        self.out = nn.Linear(target.width, 2)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., 2] from [..., width]."""
        for layer in self.layers:
            hidden = hidden + nn.functional.silu(layer(hidden))
        scores: Tensor = self.out(hidden)
        return scores


class SpecDecPlusPlus(Stop):
    """threshold: chance of a rejection in the round so far that ends it when exceeded. head: a folder made by
    `python -m specbench.train part=acceptance_head`, or <pair>:<part>; null: the shipped one of the pair's draft, found by its
    identity.

    Raises ConfigError (method.stop) for a method that drafts without a model, and for a head of other models.
    """

    draft_taps = (TAP,)

    def __init__(self, *, draft_length: int | None = None, threshold: float = 0.7, head: str | None = None):
        number("method.stop.threshold", threshold, 0.0, 1.0, "a probability")
        text("method.stop.head", head, "give the folder of a trained head, or null (that of the pair's draft)", null=True)
        super().__init__(draft_length)
        self.threshold, self.given = threshold, head
        self.all_stand = 1.0  # chance that all fed tokens of the round stand

    def join(self, drafter: Drafter) -> None:
        if not isinstance(drafter, ModelDraft):
            remedy = "reads a draft model's hidden states, and this method drafts without one: use confidence or entropy"
            raise ConfigError("method.stop", "specdec_pp", remedy)
        self.drafter = drafter

    def look_up(self, pair: PairSpec) -> dict[str, Path]:
        assert pair.draft is not None, "a method that drafts without a model is refused before"
        return {"stop.head": self._folder(pair.draft)}

    def open(self, setting: Setting) -> None:
        pair, draft = setting.runtime.pair, setting.runtime.draft
        assert pair.draft is not None and draft is not None, "its drafter is open"
        folder = self._folder(pair.draft)
        try:
            parts = TargetParts.of(draft.module, target_hash(pair.draft))
        except (ValueError, AttributeError) as error:
            raise ConfigError("pair.draft", pair.draft.name, f"takes no acceptance head: {error}") from error
        self.head = load_heads(AcceptanceHead, folder, parts, "method.stop.head", "pair.draft")
        judged_by, target = self.head.calibration.get("target_sha256"), target_hash(pair.target)
        if None not in (judged_by, target) and judged_by != target:
            remedy = f"trained on what a target of sha256 {judged_by} accepts; pair.target has {target}: train one for it"
            raise ConfigError("method.stop.head", str(folder), remedy)
        self.name = shown(self.given, folder)

    def _folder(self, draft: ModelSpec) -> Path:
        return find_heads("acceptance", self.given, draft.name, "method.stop.head", COMMAND, target_hash(draft))

    @torch.inference_mode()
    def goes_on(self, logits: Tensor, token: int) -> bool:
        if self.drafter.num_forwards == 1:  # what was fed is committed
            self.all_stand = 1.0
        else:
            self.all_stand *= float(self.head(self.drafter.session.tapped[TAP][-1]).softmax(-1)[1])
        return 1.0 - self.all_stand <= self.threshold

    def memory_bytes(self) -> dict[str, int]:
        return {"acceptance_head": sum(p.numel() * p.element_size() for p in self.head.parameters())}

    def facts(self) -> dict[str, float | int | str]:
        return {"acceptance_head": self.name}
