"""Lockstep (PEARL, Liu et al. 2408.11850): in every step the draft makes a block while the target runs one forward.

*Pre-verify*: that forward tests the first token of the block that is being drafted; if it stands, the whole block is accepted
on trust. *Post-verify*: the forward tests the rest of the last block, while the next one is drafted behind it. `draft`: one
block a step. `verify`: the target's side. Both are step functions over a mailbox, so that a test can run them in one process.
"""
