"""Run folders into data frames: one row per run, sample and round, with the columns that `columns` documents.

A format version that is no longer written is read here and nowhere else; what cannot be used is left out with its reason and
never guessed. Nothing is computed that the records do not say. May import measure and config.
"""
