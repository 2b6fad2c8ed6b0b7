"""Methods whose draft model learns while it is used: an adapter beside an ordinary draft."""
