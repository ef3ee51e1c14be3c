"""Who runs how many tokens in the next step."""
