"""Target, draft and tokenizer: which they are, how they load, which ids they share, and why two of them are refused.

A refusal says its reason before anything runs. May import engine, config and measure; each process loads only its own models.
"""
