"""The HTTP server. `run` is all that others need; importing this package loads no web framework."""

from quire.server.run import run

__all__ = ["run"]
