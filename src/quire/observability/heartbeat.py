"""Heartbeat: one number in a mapped file that a process counts up while it lives, and another one watches.

It needs nothing of the process that is watched but to go on: a hung one cannot answer, a stopped one not even run.
"""

from __future__ import annotations

import mmap
from pathlib import Path

FILE = "beat"
"""In the private folder of an engine."""


class Heartbeat:
    """The number.

    Args:
        path: the file; `create` has made it. None counts for nobody.
    """

    __slots__ = ("_cell",)

    def __init__(self, path: Path | None = None) -> None:
        if path is None:
            self._cell = memoryview(bytearray(8)).cast("Q")
            return
        with path.open("r+b") as file:
            self._cell = memoryview(mmap.mmap(file.fileno(), 8)).cast("Q")

    @staticmethod
    def create(path: Path) -> None:
        """Make the file, at zero."""
        path.write_bytes(bytes(8))

    def tick(self) -> None:
        """One turn more."""
        self._cell[0] += 1

    @property
    def count(self) -> int:
        """Turns so far; 0 if it has not begun."""
        return self._cell[0]
