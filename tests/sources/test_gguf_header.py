"""Headers that lie: one line each, at once, and never more memory than the file has bytes."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import checkpoints
import pytest
from gguf_files import write_gguf
from mutations import load, mutations

from quire.errors import ConfigError, QuireError, StartupError
from quire.sources import resolve
from quire.sources.gguf import header as header_module
from quire.sources.gguf.header import read_header

U32, U64 = struct.Struct("<I").pack, struct.Struct("<Q").pack


def text(value: str | bytes) -> bytes:
    content = value.encode() if isinstance(value, str) else value
    return U64(len(content)) + content


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + U32(kind) + value


def tensor(name: str = "a", sizes: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + U32(len(sizes)) + b"".join(map(U64, sizes)) + U32(kind) + U64(offset)


def file(
    pairs: tuple[bytes, ...] = (), tensors: tuple[bytes, ...] = (), data: int = 64, *, version: int = 3,
    num_tensors: int | None = None, num_pairs: int | None = None, alignment: int = 32,
) -> bytes:  # fmt: skip
    counts = U64(len(tensors) if num_tensors is None else num_tensors) + U64(
        len(pairs) if num_pairs is None else num_pairs
    )
    content = b"GGUF" + U32(version) + counts + b"".join(pairs) + b"".join(tensors)
    return content + bytes(-len(content) % alignment) + bytes(data)


def array(kind: int, count: int, content: bytes = b"") -> bytes:
    return U32(kind) + U64(count) + content


BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "too few"),
    "23 bytes": (b"GGUF" + bytes(19), "too few"),
    "safetensors": (U64(2) + b"{}" + bytes(40), "does not begin with GGUF"),
    "version 1": (file(version=1), "version 1"),
    "version 9": (file(version=9), "version 9"),
    "big-endian": (b"GGUF" + struct.pack(">I", 3) + bytes(40), "big-endian"),
    "2^64-1 tensors": (file(num_tensors=(1 << 64) - 1), "tensors, where at most"),
    "2^32 tensors": (file(num_tensors=1 << 32), "tensors, where at most"),
    "2^64-1 pairs": (file(num_pairs=(1 << 64) - 1), "pairs, where at most"),
    "one pair too many": (file((pair("a", 4, U32(1)),), num_pairs=9, data=0), "pairs, where at most"),
    "one tensor too many": (file((), (tensor(),), num_tensors=2, data=640), "dimensions|cut short|long"),
    "key of 2^63": (file((U64(1 << 63) + b"abc",), data=640), "a key' would be"),
    "key beyond the file": (file((U64(700) + b"abc",), data=640), "cut short"),
    "key not UTF-8": (file((text(b"\xff\xfe") + U32(4) + U32(1),)), "not UTF-8"),
    "key twice": (file((pair("a", 4, U32(1)),) * 2), "'a' appears twice"),
    "unknown type": (file((pair("a", 13, U32(1)),)), "unknown type 13"),
    "text of 2^62": (file((pair("a", 8, U64(1 << 62)),)), "would be"),
    "text not UTF-8": (file((pair("a", 8, text(b"\xc3\x28")),)), "not UTF-8"),
    "list of 2^61 numbers": (file((pair("a", 9, array(10, 1 << 61)),)), "numbers in 'a', where at most"),
    "list that wraps": (file((pair("a", 9, array(10, (1 << 61) + 1)),)), "numbers in 'a', where at most"),
    "list of 2^60 texts": (file((pair("a", 9, array(8, 1 << 60)),)), "texts in 'a', where at most"),
    "list of lists": (file((pair("a", 9, array(9, 1, array(4, 0))),)), "a list of type 9"),
    "alignment 0": (file((pair("general.alignment", 4, U32(0)),)), "power of two"),
    "alignment 48": (file((pair("general.alignment", 4, U32(48)),)), "power of two"),
    "alignment 2^31": (file((pair("general.alignment", 4, U32(1 << 31)),)), "power of two"),
    "alignment of text": (file((pair("general.alignment", 8, text("32")),)), "power of two"),
    "no dimensions": (file((), (tensor(sizes=()),), data=640), "0 dimensions"),
    "five dimensions": (file((), (tensor(sizes=(1,) * 5),), data=640), "5 dimensions"),
    "2^32-1 dimensions": (file((), (text("a") + U32((1 << 32) - 1) + bytes(64),)), "4294967295 dimensions"),
    "size 0": (file((), (tensor(sizes=(4, 0)),)), "cannot be"),
    "size 2^63": (file((), (tensor(sizes=(1 << 63,)),)), "cannot be"),
    "product wraps to 0": (file((), (tensor(sizes=(1 << 32, 1 << 32)),)), "cannot be"),
    "product wraps to 4": (file((), (tensor(sizes=((1 << 62) + 1, 4)),)), "cannot be"),
    "bytes wrap": (file((), (tensor(sizes=(1 << 24, 1 << 24)),)), "would end at byte"),
    "type unknown": (file((), (tensor(kind=99),)), "number 99, which is not read"),
    "type IQ2_S": (file((), (tensor(kind=22),)), "type IQ2_S, which is not read; known are F32"),
    "no whole blocks": (file((), (tensor(sizes=(48,), kind=8),)), "no whole blocks of Q8_0"),
    "offset beyond": (file((), (tensor(offset=1 << 40),)), "would end at byte"),
    "offset 2^64-32": (file((), (tensor(offset=(1 << 64) - 32),)), "would end at byte"),
    "offset odd": (file((), (tensor(offset=4),)), "no multiple of 32"),
    "cut short": (file((), (tensor(sizes=(32,)),), data=127), "cut short"),
    "overlap": (file((), (tensor("a", (16,)), tensor("b", (16,), offset=32)), data=128), "'b' overlaps 'a'"),
    "same bytes": (file((), (tensor("a"), tensor("b"))), "overlaps"),
    "name twice": (file((), (tensor("a"), tensor("a", offset=32))), "'a' appears twice"),
    "name of 1000": (file((), (tensor("a" * 1000),)), "would be 1000 bytes"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_header_is_one_clear_line(case: str, tmp_path: Path) -> None:
    content, words = BROKEN[case]
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(StartupError, match=words) as caught:
        read_header(path)
    message = caught.value.message
    assert "\n" not in message and message.startswith(str(path)) and len(message) < 600


def test_a_good_header(tmp_path: Path) -> None:
    pairs = (
        pair("n", 5, struct.pack("<i", -3)), pair("t", 8, text("é")), pair("f", 6, struct.pack("<f", 0.5)),
        pair("b", 7, b"\1"), pair("l", 9, array(8, 2, text("x") + text(""))), pair("u", 9, array(0, 3, b"\1\2\3")),
    )  # fmt: skip
    path = tmp_path / "x.gguf"
    path.write_bytes(file(pairs, (tensor("b", (2, 4), offset=32), tensor("a", (8,)))))
    found = read_header(path)
    assert found.values == {"n": -3, "t": "é", "f": 0.5, "b": True, "l": ["x", ""], "u": [1, 2, 3]}
    assert [(t.name, t.shape, t.end - t.start) for t in found.tensors] == [("a", (8,), 32), ("b", (4, 2), 32)]
    assert found.tensors[1].end == path.stat().st_size


def test_a_vocabulary_is_read_across_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["é" * (i % 9) + str(i) for i in range(300)]
    path = tmp_path / "x.gguf"
    content = array(8, len(words), b"".join(map(text, words)))
    path.write_bytes(file((pair("w", 9, content), pair("n", 4, U32(7))), (tensor(),)))
    for step in (1, 7, 1000, 1 << 20):
        monkeypatch.setattr(header_module, "STEP_BYTES", step)
        assert read_header(path).values == {"w": words, "n": 7}
    path.write_bytes(file((pair("w", 9, array(8, 2, text("a") + text(b"\xff"))),)))
    with pytest.raises(StartupError, match="'w' is not UTF-8"):
        read_header(path)


def test_a_header_beyond_the_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header_module, "MAX_HEADER_BYTES", 1000)
    path = tmp_path / "x.gguf"
    path.write_bytes(file((pair("a", 8, text("x" * 2000)),)))
    with pytest.raises(StartupError, match="longer than 1000 bytes"):
        read_header(path)


def test_random_damage_is_one_line_or_nothing(tmp_path: Path) -> None:
    """Bytes, lengths and offsets of a real file's header changed: 300 times, from the header to names and shapes."""
    checkpoints.write("qwen3", tmp_path / "model", num_hidden_layers=1)
    [path] = write_gguf(tmp_path / "model", tmp_path / "x.gguf")
    whole = path.read_bytes()
    end = min(tensor.start for tensor in read_header(path).tensors)
    outcomes = {"read": 0, "refused": 0}
    for number, damaged in enumerate(mutations(whole, end, 300, random.Random(1))):
        path.write_bytes(damaged)
        try:
            made = resolve(str(path), weights=True, download_dir=str(tmp_path / f"kept{number}"))
            outcomes["read" if load(made) is None else "refused"] += 1
        except (ConfigError, StartupError) as error:
            outcomes["refused"] += 1
            assert isinstance(error, QuireError) and "\n" not in error.message and len(error.message) < 1000
    assert outcomes["refused"] > 150
