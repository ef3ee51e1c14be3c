"""HTTP/1.1 answers and server-sent events from bytes as they arrive, cut anywhere. No I/O, and no JSON.

    bytes ─► ResponseReader ─► pieces of the body ─► EventReader ─► payloads of `data:` lines

The usual case, one event in one chunk in one read, takes a few comparisons; everything else takes the general path.
"""

from __future__ import annotations

MAX_HEAD_BYTES = 64 << 10
MAX_LINE_BYTES = 4 << 10
_CRLF = b"\r\n"


class ProtocolError(Exception):
    """The other side does not speak HTTP/1.1 as it should."""


class ResponseReader:
    """Owns the framing of one answer: feed bytes, get body bytes.

    Attributes:
        status: of the answer; 0 until the head is complete.
        headers: by lower-case name.
        done: the answer is complete.
        keep_alive: another request may follow on this connection.
        until_close: only the end of the connection tells the end of the answer.
        started: at least one byte came.
    """

    __slots__ = ("_buffer", "_left", "_mode", "done", "headers", "keep_alive", "started", "status", "until_close")

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.done = False
        self.keep_alive = True
        self.until_close = False
        self.started = False
        self._mode = _HEAD
        self._left = 0  # bytes of the current chunk, or of the whole body
        self._buffer = b""  # what is not understood yet: part of a head, of a chunk's size or of a trailer

    def feed(self, data: bytes) -> list[bytes]:
        """The pieces of the body in these bytes.

        Raises:
            ProtocolError: no HTTP/1.1, or bytes after the end.
        """
        self.started = True
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        pieces: list[bytes] = []
        if self._mode == _HEAD:
            data = self._head(data)
        if self._mode == _CHUNKED:
            self._chunks(data, pieces)
        elif self._mode == _LENGTH:
            self._take(data, pieces)
        elif self._mode == _UNTIL_CLOSE and data:
            pieces.append(data)
        elif self._mode == _END and data:
            raise ProtocolError("bytes after the end of the answer")
        return pieces

    def close(self) -> None:
        """The connection ended.

        Raises:
            ProtocolError: in the middle of an answer.
        """
        if self._mode == _UNTIL_CLOSE:
            self._mode, self.done = _END, True
        if not self.done:
            raise ProtocolError("connection closed in the middle of the answer" if self.started else "no answer")

    def _head(self, data: bytes) -> bytes:
        """Read the head, and skip those of 1xx answers; returns what follows."""
        while True:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                if len(data) > MAX_HEAD_BYTES:
                    raise ProtocolError("the head of the answer does not end")
                self._buffer = data
                return b""
            head, data = data[:end], data[end + 4 :]
            self._read_head(head)
            if self.status >= 200:
                self._choose_mode()
                return data

    def _read_head(self, head: bytes) -> None:
        first, *lines = head.decode("latin-1").split("\r\n")
        version, _, rest = first.partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdecimal():
            raise ProtocolError(f"no HTTP/1.1 answer: {first[:60]!r}")
        self.status = int(rest[:3])
        self.headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            self.headers[name.strip().lower()] = value.strip()
        connection = self.headers.get("connection", "").lower()
        self.keep_alive = "close" not in connection if version == "HTTP/1.1" else "keep-alive" in connection

    def _choose_mode(self) -> None:
        length = self.headers.get("content-length")
        if self.status in (204, 304):
            self._mode, self.done = _END, True
        elif "chunked" in self.headers.get("transfer-encoding", "").lower():
            self._mode, self._left = _CHUNKED, 0
        elif length is not None:
            if not length.isdecimal():
                raise ProtocolError(f"content-length {length[:40]!r}")
            self._mode, self._left = _LENGTH, int(length)
            if not self._left:
                self._mode, self.done = _END, True
        else:
            self._mode, self.until_close, self.keep_alive = _UNTIL_CLOSE, True, False

    def _take(self, data: bytes, pieces: list[bytes]) -> None:
        if len(data) > self._left:
            raise ProtocolError("bytes after the end of the answer")
        self._left -= len(data)
        if data:
            pieces.append(data)
        if not self._left:
            self._mode, self.done = _END, True

    def _chunks(self, data: bytes, pieces: list[bytes]) -> None:
        """size CRLF bytes CRLF ... 0 CRLF [trailer CRLF ...] CRLF. `_left` counts a chunk's bytes and its CRLF."""
        place, end = 0, len(data)
        left = self._left
        while place < end:
            if left:  # inside a chunk
                stop = place + left
                if stop <= end:
                    if stop - place > 2:
                        pieces.append(data[place : stop - 2])
                    place, left = stop, 0
                    continue
                body_end = min(end, stop - 2)
                if body_end > place:
                    pieces.append(data[place:body_end])
                left -= end - place
                break
            line_end = data.find(_CRLF, place)
            if line_end < 0:
                if end - place > MAX_LINE_BYTES:
                    raise ProtocolError("the size of a chunk does not end")
                self._buffer = data[place:]
                break
            size = _chunk_size(data[place:line_end])
            if size == 0:
                self._trailer(data[place:])
                break
            place, left = line_end + 2, size + 2
        self._left = left

    def _trailer(self, data: bytes) -> None:
        """From the last chunk's size on: complete when an empty line came."""
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if len(data) > MAX_HEAD_BYTES:
                raise ProtocolError("the trailer of the answer does not end")
            self._buffer = data
        elif end + 4 < len(data):
            raise ProtocolError("bytes after the end of the answer")
        else:
            self._mode, self.done = _END, True


_HEAD, _CHUNKED, _LENGTH, _UNTIL_CLOSE, _END = range(5)


def _chunk_size(line: bytes) -> int:
    digits = line.partition(b";")[0].strip()
    try:
        if not digits.isalnum():  # int() would take signs and underscores
            raise ValueError
        return int(digits, 16)
    except ValueError:
        raise ProtocolError(f"size of a chunk {line[:40]!r}") from None


def _ends_alone(piece: bytes) -> bool:
    """Whether a piece whose first newline is its last byte but one is one event and nothing else."""
    return piece.endswith(b"\n\n") and b"\r" not in piece


class EventReader:
    """Owns what is left over of an event stream: feed pieces of the body, get the data of complete events."""

    __slots__ = ("_lines", "_tail")

    def __init__(self) -> None:
        self._tail = b""  # an unfinished line
        self._lines: list[bytes] = []  # data lines of the unfinished event

    def feed(self, piece: bytes) -> list[bytes]:
        """Data of the events that this piece completes; comments and other fields are left out."""
        fresh = not self._tail and not self._lines
        if fresh and piece.startswith(b"data: ") and piece.find(b"\n") == len(piece) - 2 and _ends_alone(piece):
            return [piece[6:-2]]
        return self._general(piece)

    def close(self) -> list[bytes]:
        """Data of an event whose empty line never came."""
        payloads = self._general(b"\n\n") if self._tail or self._lines else []
        self._tail = b""
        return payloads

    def _general(self, piece: bytes) -> list[bytes]:
        data = self._tail + piece
        lines = data.splitlines(keepends=True)  # bytes: ends are \n, \r and \r\n
        self._tail = b""
        if lines and (not lines[-1].endswith(b"\n")):  # also a \r at the very end: \n may follow
            self._tail = lines.pop()
        payloads = []
        for line in lines:
            line = line.rstrip(b"\r\n")
            if line.startswith(b"data:"):
                self._lines.append(line[6:] if line.startswith(b"data: ") else line[5:])
            elif not line and self._lines:
                payloads.append(b"\n".join(self._lines))
                self._lines = []
        return payloads
