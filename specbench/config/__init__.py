"""What was asked: the command line to one typed, checked `RunConfig`, and an option that is wrong to one clear line.

A new option stands in `schema` with its default and its range. Whatever a constructor refuses is a `ConfigError`, with the
checkers of `options`. Ground floor: nothing of the house is imported here, and hydra in `compose` and `errors` alone.
"""
