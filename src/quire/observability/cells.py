"""Numbers that are added to in one process and may be summed over several: where the counters behind /metrics live.

    process 0   | engine's gauges | counters | histograms ... |
    process 1   | (empty)         | counters | histograms ... |   each writes its own row, everybody reads all rows

Every process takes its parts in the same order, so that the same place means the same thing in each row. A number is
a double: counts stay exact up to 2^53, and one is read or written at once.
"""

from __future__ import annotations

import mmap
from collections.abc import MutableSequence, Sequence
from pathlib import Path
from typing import cast

ROW_CELLS = 1024
_CELL_BYTES = 8
Row = MutableSequence[float]


class Part:
    """Some neighbouring numbers.

    Attributes:
        own: this process's; add to them.
    """

    __slots__ = ("_rows", "own")

    def __init__(self, own: Row, rows: Sequence[Row]) -> None:
        self.own = own
        self._rows = rows

    def __len__(self) -> int:
        return len(self.own)

    def sums(self) -> list[float]:
        """Each number, summed over the processes."""
        return [sum(cells) for cells in zip(*self._rows, strict=True)]

    def rows(self) -> Sequence[Row]:
        """The numbers of each process."""
        return self._rows

    def of_first(self) -> list[float]:
        """The numbers of process 0."""
        return list(self._rows[0])


class Cells:
    """Numbers of this process alone."""

    def take(self, count: int) -> Part:
        """The next `count` numbers, zero at first."""
        own = [0.0] * count
        return Part(own, [own])


class SharedCells(Cells):
    """Numbers in a file that all processes have mapped.

    Args:
        path: the file; `create` has made it.
        index: which process this is.
        num_processes: how many there are.
        row_cells: most numbers of one process.
    """

    def __init__(self, path: Path, index: int, num_processes: int, row_cells: int = ROW_CELLS) -> None:
        with path.open("r+b") as file:
            cells = memoryview(mmap.mmap(file.fileno(), num_processes * row_cells * _CELL_BYTES)).cast("d")
        self._rows = [cast("Row", cells[i * row_cells : (i + 1) * row_cells]) for i in range(num_processes)]
        self._row_cells = row_cells
        self._index = index
        self._next = 0

    @staticmethod
    def create(path: Path, num_processes: int, row_cells: int = ROW_CELLS) -> None:
        """Make the file, all zeros."""
        path.write_bytes(bytes(num_processes * row_cells * _CELL_BYTES))

    def take(self, count: int) -> Part:
        start, self._next = self._next, self._next + count
        if self._next > self._row_cells:
            raise ValueError(f"{self._next} numbers are more than the {self._row_cells} of a row")
        views = [row[start : self._next] for row in self._rows]
        return Part(views[self._index], views)
