"""PEARL's schedule: target and draft take every step together, and both know its plan before they take it.

A word in a message is added to `plan` first, then on both sides.
"""
