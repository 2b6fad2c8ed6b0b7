"""The training text: permissively licensed Python found on the machine, and the tokenizer made from it.

A package without a clear licence stays out. Text that overlaps an evaluation set is removed by `train.overlap`.
"""
