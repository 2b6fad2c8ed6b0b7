"""`python -m specbench.train part=...`: makes what a pair or a method needs, targets, drafts and heads, each with its card.

Exact resumption and the card are part of every training. May import method, parts, pair, data, engine, measure and config,
never run.
"""
