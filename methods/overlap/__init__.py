"""Methods whose draft works while the target does, in a process of its own. A recipe imports parts, never another method."""
