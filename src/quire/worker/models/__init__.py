"""One file per architecture family, and the registry."""
