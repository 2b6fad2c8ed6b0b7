"""What is written down and what it means: records, clocks, statistics, verdicts, provenance (never torch)."""
