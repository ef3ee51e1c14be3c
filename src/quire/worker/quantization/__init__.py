"""How linear layers keep their weights: one file per scheme, and the protocol."""
