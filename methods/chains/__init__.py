"""Methods whose draft is a chain, and the one that drafts nothing. A recipe imports parts, never another method."""
