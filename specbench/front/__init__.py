"""The door that people type at: `python -m specbench`, and sweeps of its runs, in this process or each in a fresh one.

Command lines that worked go on working: options are added, not renamed. May import run, track and config, and the analysis
inside the one function that needs it.
"""
