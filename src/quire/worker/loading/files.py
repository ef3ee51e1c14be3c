"""Which files hold a checkpoint's weights, and their tensors one by one, without reading more than one at a time."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

import torch

from quire.checkpoint import Fields, read_json
from quire.errors import ConfigError, StartupError
from quire.worker.loading.header import Entry, read_header

INDEX = "model.safetensors.index.json"
NOT_OURS = ("consolidated", "adapter")
"""Beginnings of weight files in another layout, or of something else."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}
"""The dtypes of the format that a parameter can have."""


def find_tensors(folder: Path) -> dict[Path, tuple[Entry, ...]]:
    """The checkpoint's weight files with their checked headers: one file, or those of an index.

    Raises:
        ConfigError: there are none; pickles get a hint how to convert them.
        StartupError: a broken file or index.
    """
    single, index = folder / "model.safetensors", folder / INDEX
    if single.exists():
        return {single: read_header(single)}
    if index.exists():
        return _indexed(folder, index)
    others = [path for path in sorted(folder.glob("*.safetensors")) if not path.name.startswith(NOT_OURS)]
    if not others:
        raise ConfigError(_none_found(folder))
    return _no_twice({path: read_header(path) for path in others})


def _indexed(folder: Path, index: Path) -> dict[Path, tuple[Entry, ...]]:
    where = Fields(read_json(index, required=True), str(index)).section("weight_map")
    if where is None:
        raise StartupError(f"{index}: weight_map is missing.")
    for name, file in where.values.items():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            where.fail(name[:120], "must name a .safetensors file of this folder", file)
    files = {folder / file: read_header(folder / file) for file in sorted(set(where.values.values()))}
    return _no_twice(_check_index(files, where))


def _check_index(files: dict[Path, tuple[Entry, ...]], where: Fields) -> dict[Path, tuple[Entry, ...]]:
    """The index and the headers agree on what is where."""
    found = {(entry.name, path.name) for path, entries in files.items() for entry in entries}
    for name, file in where.values.items():
        if (name, file) not in found:
            raise StartupError(f"{where.where}: tensor {name[:120]!r} is not in {file}.")
    for name, file in sorted(found):
        if name not in where.values:
            raise StartupError(f"{where.where}: tensor {name[:120]!r} of {file} is not in the index.")
    return files


def _no_twice(files: dict[Path, tuple[Entry, ...]]) -> dict[Path, tuple[Entry, ...]]:
    homes: dict[str, Path] = {}
    for path, entries in files.items():
        for entry in entries:
            if entry.name in homes:
                raise StartupError(f"{path}: tensor {entry.name!r} is in {homes[entry.name].name} as well.")
            homes[entry.name] = path
    return files


def _none_found(folder: Path) -> str:
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if not pickles:
        return f"{folder}: no *.safetensors weights here. Use --load-format dummy to run with random ones."
    return (
        f"{folder}: the weights are pickles ({pickles[0]}), which can run code when read. If you trust them, convert"
        " them once: transformers.AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)."
    )


class TensorFile(AbstractContextManager["TensorFile"]):
    """A mapped weight file. Pages that were read are given back as we go, so host memory stays small."""

    RELEASE_BYTES = 128 << 20

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        # Copy-on-write, because torch warns of read-only buffers; nothing writes.
        self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._released = 0

    def copy(self, entry: Entry, target: torch.Tensor, progress: Callable[[int], None]) -> None:
        """Copy a tensor into `target` of the same shape, casting it, in pieces; tell the bytes of each."""
        dtype = DTYPES[entry.dtype]
        rows = entry.shape[0] if entry.shape else 1
        row_bytes = (entry.end - entry.start) // max(rows, 1)
        flat = target.unsqueeze(0) if not entry.shape else target
        step = max(1, self.RELEASE_BYTES // max(row_bytes, 1))
        for row in range(0, rows if row_bytes else 0, step):
            count = min(step, rows - row)
            start = entry.start + row * row_bytes
            raw = torch.frombuffer(self._map, dtype=torch.uint8, count=count * row_bytes, offset=start)
            if start % dtype.itemsize:  # an odd header length leaves the numbers unaligned
                raw = raw.clone()
            flat[row : row + count].copy_(raw.view(dtype).view(count, *entry.shape[1:]))
            del raw
            self._release(start + count * row_bytes)
            progress(count * row_bytes)

    def _release(self, upto: int) -> None:
        """Drop the pages of a finished stretch; they stay in the system's file cache."""
        upto -= upto % mmap.PAGESIZE
        if upto - self._released >= self.RELEASE_BYTES:
            self._map.madvise(mmap.MADV_DONTNEED, self._released, upto - self._released)
            self._released = upto

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._map.close()
        self._file.close()
