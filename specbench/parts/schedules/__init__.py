"""Who is at work when: one process by turns (`sequential`), or target and draft at once in two (`two_sides` and its rooms).

A schedule decides the order of drafting, forwards and verdicts, never which tokens stand. Both sides of one are step functions
over a mailbox, so that a test can interleave them.
"""
