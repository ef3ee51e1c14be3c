"""One request and its timeline: when it was sent, when each chunk came, how it ended."""

from __future__ import annotations

from array import array
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

MAX_ERROR_BODY = 16 << 10
MAX_ERROR_TEXT = 500
REFUSED = frozenset({429, 503})
"""Statuses by which a server says that it has no room."""


class Outcome(msgspec.Struct, frozen=True):
    """What is known of a request afterwards; times are seconds of the machine's monotonic clock.

    Attributes:
        index: of the request.
        start: when it was sent; opening a connection, where none was idle, comes after.
        end: when the last chunk came, or the error.
        status: HTTP status; 0 if there was no answer.
        error: what went wrong; empty if nothing did.
        prompt_tokens: as the server counted them; 0 if it did not say.
        output_tokens: likewise; else the number of chunks.
        chunks: times of the streamed chunks, as float64 bytes.
    """

    index: int
    start: float
    end: float
    status: int
    error: str
    prompt_tokens: int
    output_tokens: int
    chunks: bytes

    @property
    def times(self) -> NDArray[np.float64]:
        """Times of the streamed chunks."""
        return np.frombuffer(self.chunks, dtype=np.float64)

    @property
    def refused(self) -> bool:
        """Whether the server had no room."""
        return self.status in REFUSED


class Exchange:
    """Owns the timeline of one request while its answer streams in.

    A chunk counts if it carries choices, with two exceptions that keep the figures honest: the opening chunk of a chat
    that holds nothing but the role, and a closing chunk without text that came in the same read as the last text.

    Args:
        index: of the request.
        start: now.
    """

    __slots__ = ("_last", "_times", "ended", "error", "index", "output_tokens", "prompt_tokens", "start", "status")

    def __init__(self, index: int, start: float) -> None:
        self.index = index
        self.start = start
        self.status = 0
        self.error = ""
        self.ended = False  # [DONE] came
        self.prompt_tokens = self.output_tokens = 0
        self._times = array("d")
        self._last = b""

    def take(self, payload: bytes, now: float) -> None:
        """One event of the stream."""
        if b'"choices"' not in payload:
            if payload == b"[DONE]":
                self.ended = True
            else:
                self._take_other(payload)
            return
        if b'"completion_tokens"' in payload and self._take_usage(payload):
            return
        if not self._times and _opens_only(payload):
            return
        self._times.append(now)
        self._last = payload

    def fail(self, error: str) -> None:
        """The request ends with this; the first error stays."""
        self.error = self.error or error or "unknown error"

    def outcome(self, now: float) -> Outcome:
        """The request is over."""
        times = self._times
        if not self.error and not times:
            self.fail("the answer held no chunk")
        if len(times) > 1 and times[-1] == times[-2] and _closes_only(self._last):
            times.pop()
        return Outcome(
            index=self.index,
            start=self.start,
            end=now if self.error else times[-1],
            status=self.status,
            error=self.error,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens or len(times),
            chunks=times.tobytes(),
        )

    def _take_other(self, payload: bytes) -> None:
        """No choices: an error in mid-stream, or something that tells us nothing."""
        found = _decode(payload)
        if isinstance(found, dict) and ("error" in found or found.get("object") == "error"):
            self.fail(error_text(payload))
        elif isinstance(found, dict) and isinstance(found.get("usage"), dict):
            self._read_usage(found["usage"])

    def _take_usage(self, payload: bytes) -> bool:
        """Read the counts; True if the chunk carries nothing else."""
        found = _decode(payload)
        usage = found.get("usage") if isinstance(found, dict) else None
        if not isinstance(usage, dict):
            return False
        self._read_usage(usage)
        return not found.get("choices")

    def _read_usage(self, usage: dict[str, Any]) -> None:
        prompt, output = usage.get("prompt_tokens"), usage.get("completion_tokens")
        self.prompt_tokens = prompt if type(prompt) is int else self.prompt_tokens
        self.output_tokens = output if type(output) is int else self.output_tokens


def error_text(body: bytes) -> str:
    """The message of an error body: OpenAI's {"error": {"message"}}, {"message"}, {"detail"}, or its text."""
    found = _decode(body)
    while isinstance(found, dict):
        inner = next((found[key] for key in ("error", "message", "detail") if found.get(key)), None)
        if inner is None:
            break
        found = inner
    text = found if isinstance(found, str) else body.decode("utf-8", "replace")
    return " ".join(text.split())[:MAX_ERROR_TEXT]


def _opens_only(payload: bytes) -> bool:
    """Whether a chat's first chunk says who speaks and nothing else."""
    choice = _first_choice(payload)
    delta = choice.get("delta")
    if not isinstance(delta, dict) or "role" not in delta or choice.get("finish_reason"):
        return False
    return not any(value for key, value in delta.items() if key != "role")


def _closes_only(payload: bytes) -> bool:
    """Whether a chunk says why the answer ended and nothing else."""
    choice = _first_choice(payload)
    delta = choice.get("delta")
    said = delta if isinstance(delta, dict) else {"text": choice.get("text")}
    return bool(choice.get("finish_reason")) and not any(value for key, value in said.items() if key != "role")


def _first_choice(payload: bytes) -> dict[str, Any]:
    found = _decode(payload)
    choices = found.get("choices") if isinstance(found, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) else {}


def _decode(payload: bytes) -> Any:
    try:
        return msgspec.json.decode(payload)
    except msgspec.DecodeError:
        return None
