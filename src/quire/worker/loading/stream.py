"""From files to parameters, many ranges at a time.

    threads  read ranges ──┬── straight into the parameter        a CPU's, in the checkpoint's own number format
                           └── into a buffer, pinned for a GPU ──► main thread: decode, cast, copy, in order

So weights are in memory once, besides a few pieces under way.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Generic, TypeVar

import torch

from quire.sources.files import Location, Reader, open_reader
from quire.worker.loading.blocks import BLOCKS, decode
from quire.worker.loading.files import DTYPES
from quire.worker.loading.gguf import row_order
from quire.worker.loading.header import Entry

PIECE_BYTES = 16 << 20
BLOCK_PIECE_BYTES = 4 << 20
"""Of formats that grow when they are decoded."""
MIN_THREADS, MAX_THREADS = 4, 16
Tag = TypeVar("Tag")


@dataclass(frozen=True, slots=True)
class Job(Generic[Tag]):
    """A tensor of a file, and the view that it fills, of the same shape; `tag` comes back when it is full."""

    location: Location
    entry: Entry
    target: torch.Tensor
    tag: Tag


@dataclass(slots=True)
class _Piece:
    """Some bytes of a tensor: [start, start + num_bytes) of its file, rows [row, row + num_rows) of it."""

    job: Job[Any]
    start: int
    num_bytes: int
    row: int
    num_rows: int
    into: memoryview | None
    last: bool
    buffer: torch.Tensor | None = None


class Stream(AbstractContextManager["Stream"]):
    """Owns the threads, the open files and the buffers.

    Args:
        progress: told the bytes of each piece when it is where it belongs.
    """

    def __init__(self, progress: Callable[[int], None]) -> None:
        self._progress = progress
        cores = _cores()
        self._num_threads = min(MAX_THREADS, max(MIN_THREADS, len(cores)))
        self._pool = ThreadPoolExecutor(self._num_threads, "quire-read", os.sched_setaffinity, (0, cores))
        self._readers: dict[Location, Reader] = {}
        self._free: SimpleQueue[tuple[torch.Tensor, Any]] = SimpleQueue()

    def fill(self, jobs: Iterable[Job[Tag]]) -> Iterator[Tag]:
        """Fill the targets; yields the tags in order, each when its tensor is complete.

        Raises:
            StartupError: bytes that cannot be read.
        """
        waiting: deque[tuple[Future[None], _Piece]] = deque()
        for job in jobs:
            self._open(job.location)
            for piece in _pieces(job):
                if len(waiting) >= 2 * self._num_threads:
                    yield from self._land(*waiting.popleft())
                waiting.append((self._pool.submit(self._read, piece), piece))
            del job, piece  # nothing here may keep a parameter that its layer replaces
        while waiting:
            yield from self._land(*waiting.popleft())

    def _open(self, location: Location) -> None:
        if location not in self._readers:
            self._readers[location] = open_reader(location)

    def _read(self, piece: _Piece) -> None:
        """In a thread."""
        reader = self._readers[piece.job.location]
        if piece.into is not None:
            reader.read_into(piece.start, piece.into)
            return
        piece.buffer = self._buffer(piece.num_bytes, piece.job.target.device)
        reader.read_into(piece.start, memoryview(piece.buffer.numpy())[: piece.num_bytes])

    def _buffer(self, num_bytes: int, device: torch.device) -> torch.Tensor:
        """A free one whose last copy has arrived, or a new one; there are never more than pieces under way."""
        size = max(PIECE_BYTES, num_bytes)
        while not self._free.empty():
            buffer, event = self._free.get()
            if event is not None:
                event.synchronize()
            if buffer.numel() >= num_bytes:
                return buffer
        return torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")

    def _land(self, future: Future[None], piece: _Piece) -> Iterator[Any]:
        future.result()
        if piece.buffer is not None:
            _copy(piece.buffer[: piece.num_bytes], piece)
            event = None
            if piece.job.target.device.type == "cuda":
                event = torch.cuda.Event()
                event.record()
            self._free.put((piece.buffer, event))
        self._progress(piece.num_bytes)
        tag, last = piece.job.tag, piece.last
        del piece
        if last:
            yield tag

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        for reader in self._readers.values():
            reader.close()


def _cores() -> set[int]:
    """All that this process may use: OpenMP may have bound the calling thread, which its children take after."""
    found = os.sched_getaffinity(0)
    for task in Path("/proc/self/task").glob("*"):
        with suppress(OSError):  # it has ended
            found |= os.sched_getaffinity(int(task.name))
    return found


def _pieces(job: Job[Any]) -> Iterator[_Piece]:
    """A tensor in pieces of whole rows; a parameter that takes the bytes as they are needs no whole rows."""
    entry = job.entry
    num_bytes = entry.end - entry.start
    if _as_it_is(job):
        flat = memoryview(job.target.reshape(-1).view(torch.uint8).numpy())
        for at in range(0, max(num_bytes, 1), PIECE_BYTES):
            part = flat[at : at + PIECE_BYTES]
            yield _Piece(job, entry.start + at, len(part), 0, 0, part, at + PIECE_BYTES >= num_bytes)
        return
    rows = entry.shape[0] if entry.shape else 1
    row_bytes = num_bytes // max(rows, 1)
    step = max(1, (BLOCK_PIECE_BYTES if entry.dtype in BLOCKS else PIECE_BYTES) // max(row_bytes, 1))
    for row in range(0, max(rows, 1), step):
        count = min(step, rows - row)
        start = entry.start + row * row_bytes
        yield _Piece(job, start, count * row_bytes, row, count, None, row + step >= rows)


def _as_it_is(job: Job[Any]) -> bool:
    """Whether the bytes of the file are those of the parameter."""
    entry, target = job.entry, job.target
    changed = entry.heads or entry.groups or entry.less
    same = DTYPES.get(entry.dtype) == target.dtype and target.device.type == "cpu"
    return same and not changed and target.dim() > 0 and target.is_contiguous()


def _copy(raw: torch.Tensor, piece: _Piece) -> None:
    """Decode, put rows in order and cast; the number format changes on the target's device, so fewer bytes travel."""
    entry, target = piece.job.entry, piece.job.target
    if not piece.num_bytes:
        return
    order = row_order(entry)
    if DTYPES.get(entry.dtype) != target.dtype or entry.less or order is not None:
        raw = raw.to(target.device, non_blocking=True)
    if entry.dtype in BLOCKS:
        values = decode(entry.dtype, raw.view(piece.num_rows, -1))
    else:
        values = raw.view(DTYPES[entry.dtype])
    if entry.less:
        values = values.float() - entry.less
    rows = target.unsqueeze(0) if not entry.shape else target
    values = values.view(piece.num_rows, *entry.shape[1:])
    if order is None:
        rows[piece.row : piece.row + piece.num_rows].copy_(values, non_blocking=True)
    else:
        where = order[piece.row : piece.row + piece.num_rows].to(target.device)
        rows[where] = values.to(target.dtype)
