"""The header of a GGUF file, every length checked against the file before anything of it is read or kept.

    "GGUF" | u32 version | u64 tensors | u64 pairs | pairs: key, type, value | tensors: name, sizes, type, offset |
    padding to the alignment | data: tensor after tensor, each aligned

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import itertools
import math
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from quire.errors import StartupError
from quire.sources.files import Location, Reader, open_reader

MAX_HEADER_BYTES = 128 << 20
"""The largest vocabularies take some 20 MiB."""
MAX_ITEMS = 1 << 22
"""Of one list."""
MAX_PAIRS = 1 << 16
MAX_TENSORS = 1 << 20
MAX_KEY_BYTES = 1 << 16
MAX_NAME_BYTES = 512
MAX_DIMS = 4
MAX_ALIGNMENT = 1 << 20
MAX_ELEMENTS = 1 << 48
STEP_BYTES = 4 << 20
"""Read at a time: most headers without a vocabulary fit."""

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Types of values to their struct letters."""
STRING, ARRAY = 8, 9
TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    20: ("IQ4_NL", 32, 18),
    23: ("IQ4_XS", 256, 136),
    30: ("BF16", 1, 2),
}
"""Number of a type: name, numbers in a block, bytes of a block."""
OTHER_TYPES = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S", 24: "I8",
    25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip
"""Those that are not read, for the error."""


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """One tensor; its bytes are [start, end) of the file, its shape is [..., rows, columns]."""

    name: str
    type: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """What a file says before its data. Values are str, int, float, bool, or lists of one of them."""

    location: Location
    values: dict[str, Any]
    tensors: tuple[GGUFTensor, ...]


def read_header(location: Location) -> GGUFHeader:
    """Read and check a header; of the data only the size is looked at.

    Raises:
        StartupError: one line with the file, and the key or tensor that is wrong.
    """
    reader = open_reader(location)
    try:
        return _Parser(location, reader).header()
    finally:
        reader.close()


class _Parser:
    """Owns the place in the file that is reached."""

    def __init__(self, location: Location, reader: Reader) -> None:
        self._location = location
        self._reader = reader
        self._size = reader.size
        self._bytes = b""
        self._at = 0

    def header(self) -> GGUFHeader:
        """The whole of it."""
        if self._size < 24:
            self._fail(f"{self._size} bytes are too few for a GGUF file; the download may be incomplete")
        if self._take(4) != b"GGUF":
            self._fail("not a GGUF file (it does not begin with GGUF)")
        version = self._number("I")
        if version not in (2, 3):
            swapped = int.from_bytes(struct.pack("<I", version), "big") in (2, 3)
            self._fail("made for big-endian machines" if swapped else f"GGUF version {version}; known are 2 and 3")
        num_tensors, num_pairs = self._number("Q"), self._number("Q")
        self._limit(num_pairs, min(MAX_PAIRS, self._left // 13), "key-value pairs")
        values = self._pairs(num_pairs)
        self._limit(num_tensors, min(MAX_TENSORS, self._left // 32), "tensors")
        return GGUFHeader(self._location, values, self._tensors(num_tensors, _alignment(values, self._fail)))

    # ---- values --------------------------------------------------------------------------------------------------

    def _pairs(self, count: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for _ in range(count):
            key = self._text(MAX_KEY_BYTES, "a key")
            if key in values:
                self._fail(f"key {_shown(key)} appears twice")
            values[key] = self._value(self._number("I"), key)
        return values

    def _value(self, kind: int, key: str) -> Any:
        if kind in SCALARS:
            return self._scalars(SCALARS[kind], 1, key)[0]
        if kind == STRING:
            return self._text(self._left, key)
        if kind != ARRAY:
            self._fail(f"key {_shown(key)} has a value of unknown type {kind}")
        kind, count = self._number("I"), self._number("Q")
        if kind in SCALARS:
            return self._scalars(SCALARS[kind], count, key)
        if kind != STRING:
            self._fail(f"key {_shown(key)} is a list of type {kind}; known are numbers and texts")
        self._limit(count, min(MAX_ITEMS, self._left // 8), f"texts in {_shown(key)}")
        return self._texts(count, key)

    def _scalars(self, letter: str, count: int, key: str) -> list[Any]:
        width = struct.calcsize(letter)
        self._limit(count, min(MAX_ITEMS, self._left // width), f"numbers in {_shown(key)}")
        return list(struct.unpack(f"<{count}{letter}", self._take(count * width)))

    def _texts(self, count: int, key: str) -> list[str]:
        """A vocabulary: as `_text` again and again, but quick where the bytes are here already."""
        found: list[str] = []
        length_at, content, at = struct.Struct("<Q").unpack_from, self._bytes, self._at
        for _ in range(count):
            start = at + 8
            end = start + length_at(content, at)[0] if start <= len(content) else len(content) + 1
            if end <= len(content):
                with suppress(UnicodeDecodeError):  # `_text` will say so
                    found.append(content[start:end].decode())
                    at = end
                    continue
            self._at = at
            found.append(self._text(self._left, key))
            content, at = self._bytes, self._at
        self._at = at
        return found

    def _text(self, most: int, what: str) -> str:
        length = self._number("Q")
        if length > most:
            self._fail(f"{_shown(what)} would be {length} bytes long, of {self._left} that are left")
        try:
            return self._take(length).decode("utf-8")
        except UnicodeDecodeError:
            self._fail(f"{_shown(what)} is not UTF-8")

    # ---- tensors -------------------------------------------------------------------------------------------------

    def _tensors(self, count: int, alignment: int) -> tuple[GGUFTensor, ...]:
        said = [self._tensor() for _ in range(count)]
        base = -(-self._at // alignment) * alignment
        found: list[GGUFTensor] = []
        names: set[str] = set()
        for name, shape, kind, offset in said:
            label, numbers, block_bytes = self._type(name, kind)
            if name in names:
                self._fail(f"tensor {_shown(name)} appears twice")
            names.add(name)
            if shape[-1] % numbers:
                self._fail(f"tensor {_shown(name)}: rows of {shape[-1]} are no whole blocks of {label} ({numbers})")
            num_bytes = math.prod(shape) // numbers * block_bytes
            if offset % alignment:
                self._fail(f"tensor {_shown(name)}: offset {offset} is no multiple of {alignment}")
            if base + offset + num_bytes > self._size:
                self._fail(f"tensor {_shown(name)} would end at byte {base + offset + num_bytes} of {self._size};"
                           " the file is cut short")  # fmt: skip
            found.append(GGUFTensor(name, label, shape, base + offset, base + offset + num_bytes))
        found.sort(key=lambda tensor: (tensor.start, tensor.end))
        for before, tensor in itertools.pairwise(found):
            if tensor.start < before.end:
                self._fail(f"tensor {_shown(tensor.name)} overlaps {_shown(before.name)}")
        return tuple(found)

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._text(MAX_NAME_BYTES, "a tensor's name")
        num_dims = self._number("I")
        if not 1 <= num_dims <= MAX_DIMS:
            self._fail(f"tensor {_shown(name)} has {num_dims} dimensions; 1 to {MAX_DIMS} are possible")
        sizes = struct.unpack(f"<{num_dims}Q", self._take(8 * num_dims))
        if min(sizes) < 1 or max(sizes) > MAX_ELEMENTS or math.prod(sizes) > MAX_ELEMENTS:
            self._fail(f"tensor {_shown(name)}: shape {list(sizes)} cannot be")
        return name, tuple(reversed(sizes)), self._number("I"), self._number("Q")

    def _type(self, name: str, kind: int) -> tuple[str, int, int]:
        if kind not in TYPES:
            label = OTHER_TYPES.get(kind, f"number {kind}")
            known = ", ".join(entry[0] for entry in TYPES.values())
            self._fail(f"tensor {_shown(name)} is of type {label}, which is not read; known are {known}")
        return TYPES[kind]

    # ---- bytes ---------------------------------------------------------------------------------------------------

    @property
    def _left(self) -> int:
        return self._size - self._at

    def _number(self, letter: str) -> int:
        return int(struct.unpack(f"<{letter}", self._take(struct.calcsize(letter)))[0])

    def _take(self, count: int) -> bytes:
        """The next bytes; what is asked for is there, or it is an error."""
        end = self._at + count
        if end > self._size:
            self._fail(f"cut short: its header goes on after byte {self._size}")
        if end > MAX_HEADER_BYTES:
            self._fail(f"its header is longer than {MAX_HEADER_BYTES} bytes")
        if end > len(self._bytes):
            want = min(self._size, max(end, 2 * len(self._bytes), STEP_BYTES))
            self._bytes += self._reader.read(len(self._bytes), want - len(self._bytes))
        found = self._bytes[self._at : end]
        self._at = end
        return found

    def _limit(self, count: int, most: int, what: str) -> None:
        if count > most:
            self._fail(f"{count} {what}, where at most {most} can be")

    def _fail(self, reason: str) -> NoReturn:
        raise StartupError(f"{self._location}: {reason}.")


def _alignment(values: dict[str, Any], fail: Any) -> int:
    found = values.get("general.alignment", 32)
    if type(found) is not int or not 1 <= found <= MAX_ALIGNMENT or found & (found - 1):
        fail(f"general.alignment must be a power of two up to {MAX_ALIGNMENT}, got {str(found)[:40]}")
    return int(found)


def _shown(name: str) -> str:
    return repr(name if len(name) <= 120 else name[:120] + "...")
