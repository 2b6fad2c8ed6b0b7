"""AMUSD's schedule: the draft never waits, the target verifies whatever stands in the mailbox and rolls back.

`verify` is the authority on what is committed; `draft` may be ahead, behind or wrong at any time.
"""
