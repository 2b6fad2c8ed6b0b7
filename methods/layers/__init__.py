"""Methods that draft with a part of the target's own layers, on its own cache."""
