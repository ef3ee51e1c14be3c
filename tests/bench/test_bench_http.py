"""Answers and events from bytes cut anywhere."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire.bench.http import EventReader, ProtocolError, ResponseReader

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
PAYLOADS = st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])), max_size=6)
ENDS = st.sampled_from(["\n", "\r\n", "\r"])


def chunked(parts: list[bytes], extension: bytes = b"", trailer: bytes = b"") -> bytes:
    body = b"".join(b"%X%s\r\n%s\r\n" % (len(part), extension, part) for part in parts if part)
    return body + b"0\r\n" + trailer + b"\r\n"


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """The data in pieces that end at these places, and at its end."""
    bounds = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in pairwise(bounds) if b > a]


def read(pieces: list[bytes]) -> tuple[ResponseReader, bytes]:
    reader = ResponseReader()
    return reader, b"".join(part for piece in pieces for part in reader.feed(piece))


CUTS = st.lists(st.integers(0, 10_000), max_size=12)


@given(st.lists(st.binary(max_size=40), max_size=6), CUTS, st.booleans())
def test_chunked_body(parts: list[bytes], places: list[int], decorated: bool) -> None:
    extra = {"extension": b";name=value", "trailer": b"x-a: b\r\nx-c: d\r\n"} if decorated else {}
    reader, body = read(cut(HEAD + chunked(parts, **extra), places))
    assert body == b"".join(parts)
    assert (reader.done, reader.keep_alive, reader.status) == (True, True, 200)


@given(st.binary(max_size=60), CUTS)
def test_body_with_a_length(content: bytes, places: list[int]) -> None:
    head = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not Found\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
    reader, body = read(cut(head % len(content) + content, places))
    assert (body, reader.status, reader.done, reader.keep_alive) == (content, 404, True, False)


@given(st.binary(max_size=60), CUTS)
def test_body_until_the_connection_closes(content: bytes, places: list[int]) -> None:
    reader, body = read(cut(b"HTTP/1.0 200 OK\r\n\r\n" + content, places))
    assert body == content and not reader.done and reader.until_close
    reader.close()
    assert reader.done and not reader.keep_alive


@given(st.integers(0, len(HEAD + chunked([b"abc", b"de"])) - 1))
def test_closed_in_the_middle(length: int) -> None:
    reader, _ = read(cut((HEAD + chunked([b"abc", b"de"]))[:length], []))
    with pytest.raises(ProtocolError, match="middle" if length else "no answer"):
        reader.close()


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0 hello\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -3\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nab",
        HEAD + b"xyz\r\n",
        HEAD + b"-3\r\nabc\r\n",
        HEAD + chunked([b"a"]) + b"HTTP/1.1",
        b"HTTP/1.1 200 OK\r\n" + b"a" * 70_000,
        HEAD + b"1" * 5_000,
    ],
)
def test_no_http(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        ResponseReader().feed(data)


@given(PAYLOADS, ENDS, CUTS, st.booleans())
def test_events(payloads: list[str], end: str, places: list[int], noisy: bool) -> None:
    noise = f": comment{end}event: x{end}id: 1{end}" if noisy else ""
    text = "".join(f"{noise}data: {payload}{end}{end}" for payload in payloads)
    reader = EventReader()
    found = [event for piece in cut(text.encode(), places) for event in reader.feed(piece)] + reader.close()
    assert found == [payload.encode() for payload in payloads]


@given(PAYLOADS, CUTS)
def test_event_of_several_lines(lines: list[str], places: list[int]) -> None:
    text = "".join(f"data:{line}\n" for line in ["x", *lines])
    reader = EventReader()
    found = [event for piece in cut(text.encode() + b"\n", places) for event in reader.feed(piece)]
    assert found == ["\n".join(line.removeprefix(" ") for line in ["x", *lines]).encode()]


@given(PAYLOADS, CUTS, CUTS)
def test_both_together(payloads: list[str], chunk_cuts: list[int], read_cuts: list[int]) -> None:
    stream = "".join(f"data: {payload}\n\n" for payload in payloads).encode()
    answer, events, found = ResponseReader(), EventReader(), []
    for data in cut(HEAD + chunked(cut(stream, chunk_cuts)), read_cuts):
        for piece in answer.feed(data):
            found += events.feed(piece)
    assert answer.done and found == [payload.encode() for payload in payloads]


def test_last_event_without_an_empty_line() -> None:
    reader = EventReader()
    assert reader.feed(b"data: a\n\ndata: [DONE]\n") == [b"a"]
    assert reader.close() == [b"[DONE]"]
    assert reader.close() == []
