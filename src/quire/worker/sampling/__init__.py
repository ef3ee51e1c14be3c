"""From logits to tokens: a tuple of stages, one file each, then one draw."""
