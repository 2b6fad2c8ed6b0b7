"""What both sides of PEARL know of a step before they take it, and the words of their messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from specbench.engine.request import Request
from specbench.processes.mailbox import DONE, OPEN
from specbench.processes.steps import Order

# Flags of the verdict slot, beside DONE: what becomes of the drafts behind the committed tokens.
CUT, KEPT = OPEN, DONE + 1


@dataclass(frozen=True)
class Plan(Order):
    """One sample in lockstep. A step is named by its number, which messages carry as their epoch."""

    draft_length: int
    pre_verify: bool = True
    post_verify: bool = True

    def block_length(self, tokens: Sequence[int], num_unverified: int) -> int:
        """How many tokens the draft adds in a step, at most, behind `tokens` (committed, and then unverified ones).

        The output's last token is always the target's own, and nothing drafted behind an EOS can be kept. The draft stops
        earlier only behind an EOS of its own, which is verified like any other token.
        """
        request: Request = self.request
        if (num_unverified and not self.post_verify) or tokens[-1] in request.eos_ids:
            return 0
        return max(0, min(self.draft_length, request.max_new_tokens - 1 - len(tokens)))

    def target_rests(self, num_unverified: int, block_length: int) -> bool:
        """Whether the target skips this step because there is nothing to verify (only without pre-verification)."""
        return not self.pre_verify and num_unverified == 0 and block_length > 0
