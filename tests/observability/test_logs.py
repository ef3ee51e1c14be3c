"""Log lines stay lines."""

from __future__ import annotations

import logging

from quire.observability.logs import LineFormatter, escape


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
