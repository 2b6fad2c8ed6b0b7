"""The shelf: parts of a round that more than one method uses. A part that one method uses stands in that method's file.

A part does one job (grow a draft, decide what stands, run the round) and knows no method that is built from it. May import
engine, processes, measure and config.
"""
