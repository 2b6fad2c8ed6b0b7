"""Autoregressive decoding: the method that drafts nothing, through the same loop, cache, stop rule and clock as every other."""

from __future__ import annotations

from specbench.method import Drafter, Method


class Autoregressive(Method):
    """One target forward per token. Takes `draft_length` only so that sweeps over methods compose; it must be null."""

    def __init__(self, *, draft_length: int | None = None):
        super().__init__(Drafter())
