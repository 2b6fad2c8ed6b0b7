"""More than one process on one machine: start and stop a worker, a mailbox between two, cores, locks, step functions.

Knows neither models nor methods: what a worker loads and what it is told are handed in. May import config and measure.
"""
