"""The command line: parse, build the settings, start. No logic, and nothing heavy is imported before it is needed."""

from quire.cli.main import main

__all__ = ["main"]
