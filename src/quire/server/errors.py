"""The one error formatter: every exception becomes {"error": {message, type, param, code}}, and nothing leaks.

Messages of our own exceptions are written for clients. Of anything else the client learns the request's id only;
the traceback goes to the log.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import NamedTuple

import msgspec

from quire.errors import (
    DeadlineError,
    OverloadedError,
    QuireError,
    RequestError,
    RequestFailedError,
    UnavailableError,
)

log = logging.getLogger("quire.server")

RETRY_AFTER = "1"
"""Seconds; clients double it themselves."""

MAX_MESSAGE = 1000
"""Most characters of a message."""

_TYPES = {
    HTTPStatus.UNAUTHORIZED: "AuthenticationError",
    HTTPStatus.FORBIDDEN: "PermissionDeniedError",
    HTTPStatus.NOT_FOUND: "NotFoundError",
    HTTPStatus.METHOD_NOT_ALLOWED: "MethodNotAllowedError",
    HTTPStatus.REQUEST_TIMEOUT: "TimeoutError",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "PayloadTooLargeError",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "UnsupportedMediaTypeError",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "HeadersTooLargeError",
    HTTPStatus.SERVICE_UNAVAILABLE: UnavailableError.type,
}


class HttpError(QuireError):
    """An error of the HTTP layer itself.

    Args:
        status: the HTTP status.
        message: for the client.
        headers: to send with it.
        code: a short machine-readable word; the status if there is none.
    """

    def __init__(
        self, status: int, message: str, headers: dict[str, str] | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.type = _TYPES.get(HTTPStatus(status), "BadRequestError")
        self.headers = headers or {}
        self.code = code


class ErrorAnswer(NamedTuple):
    """An error as it goes out."""

    status: int
    body: bytes
    headers: dict[str, str]


def describe(error: BaseException, request_id: str) -> ErrorAnswer:
    """What the client is told about an exception; what he is not told is logged here."""
    if isinstance(error, RequestError):
        return _answer(error.status, error.message, error.type, error.param, error.code)
    if isinstance(error, HttpError):
        return _answer(error.status, error.message, error.type, code=error.code, headers=error.headers)
    if isinstance(error, (OverloadedError, DeadlineError)):
        seconds = error.retry_after
        headers = {"x-should-retry": "false"} if seconds is None else {"retry-after": str(seconds)}
        return _answer(error.status, error.message, error.type, code=error.code, headers=headers)
    if isinstance(error, UnavailableError):
        return _answer(error.status, error.message, error.type, headers={"retry-after": RETRY_AFTER})
    if isinstance(error, RequestFailedError):
        log.error("%s failed in the engine: %s", request_id, error.message)
    else:
        log.error("%s: unexpected error", request_id, exc_info=error)
    message = f"Internal error; the server's log has it under request id {request_id}."
    return _answer(500, message, QuireError.type, headers={"x-should-retry": "false"})


def _answer(
    status: int,
    message: str,
    type_: str,
    param: str | None = None,
    code: str | None = None,
    headers: dict[str, str] | None = None,
) -> ErrorAnswer:
    if len(message) > MAX_MESSAGE:  # it shows what was sent
        message = message[:MAX_MESSAGE] + "..."
    error = {"message": message, "type": type_, "param": param, "code": code or status}
    return ErrorAnswer(status, msgspec.json.encode({"error": error}), headers or {})
