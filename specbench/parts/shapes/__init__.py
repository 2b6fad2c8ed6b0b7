"""The forms of draft trees: a fixed one chosen by accuracies and costs, one that grows, and what rows cost on this machine.

Pure functions of scores and costs, but for `cost`, which measures. Whether a shape may meet a rule is said by its contract.
"""
