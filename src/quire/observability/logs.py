"""Logging set-up: one line per record on stderr, in which text from clients cannot pretend to be another line.

The text form is for people. The JSON form has one object per line: time, level, logger, message, for the end of a
request its fields, and a traceback as one string. What is not a log record (a dump of stacks, the reason why the
program ends) stays plain text.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from typing import Any

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_CONTROL_BUT_NEWLINE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]")


def escape(text: str) -> str:
    """Control characters as \\xNN, so that a text stays on its line."""
    return _CONTROL.sub(lambda match: match.group().encode("unicode_escape").decode(), text)


class LineFormatter(logging.Formatter):
    """Time, level, where from, message; a traceback keeps its own lines."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = escape(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: object) -> str:
        text = super().formatException(ei)  # type: ignore[arg-type]
        return _CONTROL_BUT_NEWLINE.sub(lambda match: match.group().encode("unicode_escape").decode(), text)


class JsonFormatter(logging.Formatter):
    """The same as one JSON object; a record's `fields` are beside its message."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


FORMATTERS: dict[str, type[logging.Formatter]] = {"text": LineFormatter, "json": JsonFormatter}


def set_up(log_format: str = "text", *, level: str = "INFO") -> None:
    """Send this process's log to stderr; libraries only from warnings on, unless everything is wanted.

    Args:
        log_format: a name in FORMATTERS.
        level: of our own records.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(FORMATTERS[log_format]())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO if level == "DEBUG" else logging.WARNING)
    logging.getLogger("quire").setLevel(level)
