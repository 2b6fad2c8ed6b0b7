"""What stored runs mean side by side: which of them may be compared, their speed-ups, intervals, verdicts, theory.

Numbers and their intervals only; how they look is `show`'s. The estimators themselves stand in `measure`, where the run's own
summary uses them too. May import read, measure and config.
"""
