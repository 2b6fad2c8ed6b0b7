"""Free-running speculative decoding (AMUSD, McDanel 2410.17375): draft and target run at once, each in its own process.

The draft free-runs: one token after the other, never waiting for a window to fill, at most `max_lookahead` ahead of what is
verified. The target verifies whatever is published. When they disagree the draft rolls back to the agreed prefix and goes on
from the target's token. `draft.DraftSide` and `verify.Verifier` are step functions, the same in two processes and under a
test's scheduler in one.
"""
