"""What a method would do on a machine that is not here: `python -m specbench.sim`.

The recipes and schedules are the house's own, step functions and all; only what they stand on is simulated. `world` is the
clock, the processes and the links between them, `session` a model that computes nothing and says what `acceptance` has for it,
`costs` what each forward would have taken. Nothing here measures speed but `measure`, which fills a cost curve.
"""
