"""Other engines behind the target's protocol (`engine.target`); `engine.session`, transformers' own forward, is the reference.

May be touched: a backend is a file and a line in `engine.target.open_target`. What it cannot do is missing from its `can`.
"""
