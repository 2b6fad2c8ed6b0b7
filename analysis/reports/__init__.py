"""What is written for people: the standard report, an experiment's own, the notebook, and published numbers beside ours.

A report chooses and orders what `derive` computed and `show` draws; a number is computed here only where one experiment alone
asks for it. `study` is the skeleton of every experiment. Files that a report writes keep their names: they are read elsewhere.
May import read, derive and show.
"""
