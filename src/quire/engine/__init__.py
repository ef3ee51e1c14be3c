"""The engine knows counts: requests, rows, blocks, budgets. It decides who runs how many tokens.

It imports no torch.
"""
