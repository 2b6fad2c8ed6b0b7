"""Methods that draft from text: what stood in the prompt, what was seen on the way. No draft model."""
