"""The composition root: starts the engine process, and builds the houses inside it.

`start` is the parent's side and knows no torch; `child` is what the new process runs.
"""

from quire.launch.start import join_engine, start_engine

__all__ = ["join_engine", "start_engine"]
