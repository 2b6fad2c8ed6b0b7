"""Mirrors of finished numbers to a tracker such as W&B, in a process of their own and only when the clock has stopped.

Never a source of truth: everything sent is in the run folder already. A new tracker is a class with `tracker`'s methods and a
YAML in conf/track. May import config, measure and processes.
"""
