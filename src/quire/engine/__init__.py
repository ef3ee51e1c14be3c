"""The engine knows counts: requests, rows, blocks, budgets. It decides who runs how many tokens, and imports no torch."""
