"""Acceptance rules: from a draft and the target's word on it to what stands. No cache, no model, no clock in here.

A new rule says which drafts it accepts and what it claims; one that claims to be exact is enumerated against the law in the
tests before anybody uses it. Randomness comes in as coins, never from a generator made here.
"""
