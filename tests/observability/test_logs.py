"""Log lines stay lines."""

from __future__ import annotations

import json
import logging
import sys

from quire.observability.logs import JsonFormatter, LineFormatter, escape


def line(message: str, *args: object, error: BaseException | None = None) -> str:
    info = (type(error), error, None) if error else None
    return LineFormatter().format(logging.LogRecord("quire", logging.INFO, "", 1, message, args, info))  # type: ignore[arg-type]


def test_control_characters_are_escaped() -> None:
    text = line("model %s", "a\nb\r\x1b[31m\u2028\x85c世")
    assert "\n" not in text and "\x1b" not in text and "\u2028" not in text
    assert text.endswith(r"model a\nb\r\x1b[31m\u2028\x85c世")
    assert escape("plain é") == "plain é"


def test_tracebacks_keep_their_lines() -> None:
    text = line("failed", error=ValueError("a\x1bb"))
    assert text.splitlines()[-1] == r"ValueError: a\x1bb"


def test_json_lines() -> None:
    record = logging.LogRecord("quire.x", logging.ERROR, "", 1, "model %s", ("a\nb\u2028\ud800",), None)
    record.fields = {"request_id": "r", "queue_ms": 1.5}
    try:
        raise ValueError("inner")
    except ValueError:
        record.exc_info = sys.exc_info()
    text = JsonFormatter().format(record)
    assert len(text.splitlines()) == 1
    found = json.loads(text)
    assert found["message"] == "model a\nb\u2028\ud800" and found["level"] == "ERROR" and found["logger"] == "quire.x"
    assert found["request_id"] == "r" and found["queue_ms"] == 1.5 and "ValueError: inner" in found["exception"]
    assert found["time"].endswith("Z") and len(found["time"]) == 24
