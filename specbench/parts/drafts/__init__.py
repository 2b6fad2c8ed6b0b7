"""Drafters: what proposes a draft each round, from a draft model, from trained heads, or from the text itself.

A drafter knows neither the rule that will judge its draft nor the clock. How its tokens were chosen is said by the contract of
the tree that it returns; what it must forget after a verdict it forgets in `observe`.
"""
