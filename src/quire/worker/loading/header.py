"""The header of a safetensors file, checked by us before a byte of it is mapped.

    | u64 n | n bytes of JSON: name -> dtype, shape, data_offsets | data: tensor after tensor, no gap, no overlap |

Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from quire.errors import StartupError
from quire.sources.files import Location, open_reader

MAX_HEADER_BYTES = 100_000_000
MAX_ELEMENTS = 1 << 62

BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
"""Bits of one element, for each dtype that the format knows."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file; its bytes are [start, end) of the file.

    `dtype` is the format's own word. What follows is only for files whose rows or numbers differ from a checkpoint's:
    see `gguf.py`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int
    heads: int = 0
    groups: int = 0
    less: float = 0.0


def read_header(path: Location) -> tuple[Entry, ...]:
    """The tensors of a safetensors file, in the order of their bytes.

    Raises:
        StartupError: one line with the file, and the tensor where it is one's fault.
    """
    reader = open_reader(path)
    try:
        size = reader.size
        header_bytes = _header_bytes(path, reader.read(0, min(size, 8)), size)
        text = reader.read(8, header_bytes)
    finally:
        reader.close()
    entries = _entries(path, _parse(path, text), 8 + header_bytes, size - 8 - header_bytes)
    _check_order(path, entries, 8 + header_bytes, size)
    return entries


def _header_bytes(path: Location, first: bytes, size: int) -> int:
    if len(first) < 8:
        raise StartupError(f"{path}: {size} bytes are too few for a safetensors file; the download may be incomplete.")
    length = int.from_bytes(first, "little")
    if length > MAX_HEADER_BYTES:
        raise StartupError(f"{path}: not a safetensors file (its header would be {length} bytes).")
    if 8 + length > size:
        raise StartupError(f"{path}: cut short, its header alone is {length} bytes of {size}.")
    return length


def _parse(path: Location, text: bytes) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name appears twice")
        return found

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise StartupError(f"{path}: broken header ({str(error)[:100] or type(error).__name__}).") from None
    if not isinstance(header, dict):
        raise StartupError(f"{path}: broken header (a {type(header).__name__}, not an object).")
    header.pop("__metadata__", None)
    return header


def _entries(path: Location, header: dict[str, Any], base: int, data_bytes: int) -> tuple[Entry, ...]:
    entries = []
    for name, said in header.items():
        reason = _why_not(said, data_bytes)
        if reason:
            raise StartupError(f"{path}: tensor {_shown(name)}: {reason}.")
        start, end = said["data_offsets"]
        entries.append(Entry(name, said["dtype"], tuple(said["shape"]), base + start, base + end))
    return tuple(sorted(entries, key=lambda entry: (entry.start, entry.end)))


def _why_not(said: Any, data_bytes: int) -> str | None:
    """What is wrong with one tensor's entry."""
    if not isinstance(said, dict) or not {"dtype", "shape", "data_offsets"} <= said.keys():
        return "needs dtype, shape and data_offsets"
    dtype, shape, offsets = said["dtype"], said["shape"], said["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        return f"unknown dtype {str(dtype)[:40]!r}"
    if not isinstance(shape, list) or len(shape) > 64 or any(type(n) is not int or n < 0 for n in shape):
        return f"shape {str(shape)[:60]} is not a list of sizes"
    if not isinstance(offsets, list) or len(offsets) != 2 or any(type(n) is not int for n in offsets):
        return f"data_offsets {str(offsets)[:60]} is not [start, end]"
    start, end = offsets
    if not 0 <= start <= end <= data_bytes:
        return f"bytes {start}..{end} lie outside the file's {data_bytes} bytes of data; it may be cut short"
    if max(shape, default=0) > MAX_ELEMENTS or math.prod(shape) > MAX_ELEMENTS:
        return f"shape {str(shape)[:60]} is too large"
    if math.prod(shape) * BITS[dtype] != (end - start) * 8:
        return f"{dtype} {shape} does not fill its {end - start} bytes"
    return None


def _check_order(path: Location, entries: tuple[Entry, ...], base: int, size: int) -> None:
    """Tensors follow one another from the header to the end of the file."""
    reached = base
    for entry in entries:
        if entry.start != reached:
            problem = "overlaps another one" if entry.start < reached else "follows a hole in the file"
            raise StartupError(f"{path}: tensor {_shown(entry.name)} {problem}.")
        reached = entry.end
    if reached != size:
        raise StartupError(f"{path}: {size - reached} bytes at its end belong to no tensor.")


def _shown(name: str) -> str:
    return repr(name if len(name) <= 120 else name[:120] + "...")
