"""Tables, figures and reports from stored runs alone (never torch)."""
