"""Methods that draft with trained heads on the target's hidden states. A recipe imports parts, never another method."""
