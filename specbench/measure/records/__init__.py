"""What is written down: frozen records, the run folder, provenance, and secrets masked on the way to a file.

A field that is added raises the format version, and every older version stays readable. `store` alone knows the file names.
"""
