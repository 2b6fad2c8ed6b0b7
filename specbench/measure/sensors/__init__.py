"""What is read off the machine: clocks, memory, power, energy, and who else was at work. Never torch at import.

A quantity that cannot be read is null with its reason, never 0; a sensor that is missing costs a run nothing.
"""
