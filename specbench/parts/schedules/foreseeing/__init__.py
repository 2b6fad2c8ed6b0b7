"""Speculation on speculation (SSD; Kumar, Dao and May, 2603.03251): while the target verifies one draft, the next is prepared
for each of its likely verdicts.

A verdict is how much of the draft stands and which token of the target's own comes behind it. `fan_out` says for which ones a
draft is prepared, `draft` prepares them as branches of one tree, `verify` is the target's side, which waits for the draft of
its round: no longer than two messages take where the verdict was foreseen. Both sides are step functions over a mailbox.
"""
