"""Methods whose draft model grows a tree. A recipe imports parts, never another method."""
