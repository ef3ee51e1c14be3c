"""Paged attention: one file per backend, the protocol, and the table that selects."""
