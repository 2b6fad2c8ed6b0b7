"""As much drafting as a byte budget allows (SpecMemo, 2506.01986): a footprint model makes it a length or tree, and a context.

The paper models what speculative decoding holds and limits what is laid out for candidates; its formulas are not published with
it, so this one is ours: weights of both models, their caches by layers, heads and positions (prompt, output and the rows of a
draft), the logits of all rows of a round, and the mask of a forward over several rows. What torch needs inside a layer, an
adapter's optimiser and the libraries themselves are not in it. Before every sample the longest draft, or the largest tree, is
taken whose footprint fits beside that sample's context; a sample that does not fit without a draft fails with a line that says
how much context would. Chosen before anything is drawn, so every rule stays exact.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from specbench.config.options import ABOVE_ZERO, ConfigError, number
from specbench.measure.sensors.memory import Dimensions, dtype_bytes
from specbench.parts.contracts import Drafter, Setting, Stop
from specbench.parts.drafts.model import ModelDraft
from specbench.parts.shapes.chain import Chain
from specbench.parts.shapes.dynamic import Dynamic

if TYPE_CHECKING:
    from specbench.engine.model import Model
    from specbench.engine.request import Request

MIB = 2**20
MOST_CONTEXT = 2**24  # tokens: the largest limit that is looked for


@dataclass(frozen=True)
class Footprint:
    """Bytes of both models while one text is decoded."""

    target: Dimensions
    draft: Dimensions

    def parts(self, context: int, num_nodes: int, num_draft_rows: int, draft_width: int) -> dict[str, int]:
        """By role. context: prompt and output. num_nodes: of a draft. num_draft_rows: laid out in the draft's cache behind the
        context. draft_width: rows of one forward of the draft at most.
        """
        rows = 1 + num_nodes
        return {
            "target_weights": self.target.weight_bytes,
            "target_kv": self.target.kv_bytes(context + rows),
            "target_logits": self.target.logit_bytes(rows),
            "target_mask": _mask_bytes(self.target, rows, context),
            "draft_weights": self.draft.weight_bytes,
            "draft_kv": self.draft.kv_bytes(context + num_draft_rows),
            "draft_logits": self.draft.logit_bytes(draft_width),
            "draft_mask": _mask_bytes(self.draft, draft_width, context + num_draft_rows),
        }


def _mask_bytes(model: Dimensions, rows: int, context: int) -> int:
    return rows * (context + rows) * dtype_bytes(model.dtype) if rows > 1 else 0


def dimensions(model: Model, key: str) -> Dimensions:
    """A loaded model's shape. Raises ConfigError (method.stop) for one whose cache does not follow from its configuration."""
    try:
        config: dict[str, Any] = model.module.config.get_text_config(decoder=True).to_dict()
        return Dimensions.of(config, model.num_parameters, str(model.dtype))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError("method.stop", "memory", f"cannot foresee what {key} holds: {error}; use fixed") from error


def free_bytes(device: torch.device) -> int:
    """What is free now on a CUDA device, or in this machine's memory."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class Memory(Stop):
    """budget_mib: of both models' weights and all that a text needs, in MiB; null: what the loaded models hold and what is free
    on the target's device when the run begins.

    Raises ConfigError (method.stop) for a method that drafts without a model or with another tree than `shape=dynamic`'s.
    """

    def __init__(self, *, draft_length: int | None = None, budget_mib: float | None = None):
        number("method.stop.budget_mib", budget_mib, ABOVE_ZERO, 1e12, "a number above 0, or null (what is free)", null=True)
        super().__init__(draft_length)
        self.budget_mib = budget_mib

    def join(self, drafter: Drafter) -> None:
        if not isinstance(drafter, ModelDraft) or type(drafter.shape) not in (Chain, Dynamic):
            remedy = "sizes the drafts of a draft model, chains and dynamic trees: use fixed, or num_nodes for other trees"
            raise ConfigError("method.stop", "memory", remedy)
        self.drafter, self.shape = drafter, drafter.shape

    def open(self, setting: Setting) -> None:
        runtime = setting.runtime
        assert runtime.draft is not None and self.draft_length is not None, "its drafter is open"
        self.footprint = Footprint(dimensions(runtime.target, "pair.target"), dimensions(runtime.draft, "pair.draft"))
        weights = self.footprint.target.weight_bytes + self.footprint.draft.weight_bytes
        if self.budget_mib is None:
            self.budget_bytes = weights + free_bytes(runtime.target.device)
        else:
            self.budget_bytes = int(self.budget_mib * MIB)
        if self.budget_bytes <= weights:
            remedy = f"the weights of both models alone are {weights / MIB:.1f} MiB: give more, or take smaller models"
            raise ConfigError("method.stop.budget_mib", self.budget_mib, remedy)
        self.longest, self.max_new_tokens = self.draft_length, runtime.max_new_tokens
        self.sizes = self._sizes()

    def _sizes(self) -> list[tuple[int, int]]:
        """Draft lengths and nodes, the largest first: down to a tree of one node, or no chain at all."""
        if isinstance(self.shape, Dynamic):
            return [(self.longest, nodes) for nodes in range(self.shape.num_nodes, 0, -1)]
        return [(length, length) for length in range(self.longest, -1, -1)]

    def parts(self, size: tuple[int, int], prompt: int, new: int) -> dict[str, int]:
        """Bytes by role with drafts of a size (length, nodes), which is then the drafter's own."""
        self.draft_length, nodes = size
        width = 1
        if isinstance(self.shape, Dynamic):
            self.drafter.shape = Dynamic(self.shape.top_k, nodes)
            width = min(self.shape.top_k, nodes)
        return self.footprint.parts(prompt + new, self.drafter.max_nodes, self.drafter.rows_behind(new), width)

    def fits(self, request: Request) -> bool:
        prompt, new = len(request.prompt_ids), request.max_new_tokens
        return any(sum(self.parts(size, prompt, new).values()) <= self.budget_bytes for size in self.sizes)

    def begin(self, request: Request) -> None:
        if self.fits(request):  # the first size that does is the drafter's own now
            return
        prompt, new = len(request.prompt_ids), request.max_new_tokens
        limit = self.context_limit(self.sizes[-1])
        raise ValueError(
            f"a prompt of {prompt} tokens with {new} new ones does not fit into method.stop.budget_mib "
            f"({self.budget_bytes / MIB:.1f} MiB), which has room for {limit} in all: raise it, or set data.max_prompt_tokens"
        )

    def context_limit(self, size: tuple[int, int]) -> int:
        """Tokens of prompt and output that fit beside drafts of that size."""
        low, high, new = 0, MOST_CONTEXT, self.max_new_tokens
        while low < high:
            middle = (low + high + 1) // 2
            fits = sum(self.parts(size, middle - new, new).values()) <= self.budget_bytes
            low, high = (middle, high) if fits else (low, middle - 1)
        return low

    def facts(self) -> dict[str, float | int | str]:
        return {
            "memory_budget_bytes": self.budget_bytes,
            "context_limit_tokens": self.context_limit(self.sizes[-1]),
            "context_limit_tokens_of_full_drafts": self.context_limit(self.sizes[0]),
        }
