"""Every exception that Quire raises on purpose.

    QuireError
    ├── ConfigError         a flag, argument or file that cannot work; ends the start with exit code 2
    ├── StartupError        the engine could not come up (out of memory, bad checkpoint); exit code 1
    ├── RequestError        one request is wrong; HTTP 400 and nobody else notices
    │   └── NotFoundError   it names a model or a route that is not served; HTTP 404
    ├── OverloadedError     the request is fine but there is no room for it now; HTTP 429
    ├── DeadlineError       it was not begun, or not done, by the time that it had; HTTP 504
    ├── UnavailableError    loading, draining or stopped; HTTP 503
    │   └── EngineDeadError the engine process ended; HTTP 503
    └── RequestFailedError  the engine gave up on this one request; HTTP 500

A message says what was wrong, the value seen, the limit, and the flag or field that changes it.
"""

from __future__ import annotations


class QuireError(Exception):
    """Base of all errors above."""

    status = 500
    type = "InternalServerError"

    @property
    def message(self) -> str:
        """The sentence for the user."""
        return str(self.args[0]) if self.args else self.__class__.__name__


class ConfigError(QuireError):
    """A setting that cannot work, found before anything was started."""


class StartupError(QuireError):
    """The engine could not start with these settings on this machine."""


class RequestError(QuireError):
    """A request that cannot be served as written.

    Args:
        message: what is wrong, the value seen and the limit.
        param: the field to change, or None when it is the request as a whole.
        code: a short machine-readable word, as in OpenAI's error bodies.
    """

    status = 400
    type = "BadRequestError"

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class NotFoundError(RequestError):
    """The request names something that does not exist here."""

    status = 404
    type = "NotFoundError"


class OverloadedError(QuireError):
    """No room now; the same request may succeed a little later.

    Args:
        message: which limit, and the flag or file that changes it.
        code: a short machine-readable word.
        retry_after: whole seconds after which to try again.
    """

    status = 429
    type = "RateLimitError"

    def __init__(self, message: str, code: str = "queue_full", retry_after: int = 1) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after = retry_after


class DeadlineError(QuireError):
    """The time that a request had is over.

    Args:
        message: which limit, and what changes it.
        code: a short machine-readable word.
        retry_after: whole seconds after which it may go better; None where its own limit is what is too short.
    """

    status = 504
    type = "TimeoutError"

    def __init__(self, message: str, code: str = "timeout", retry_after: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after = retry_after


class UnavailableError(QuireError):
    """The service does not take requests at this moment."""

    status = 503
    type = "ServiceUnavailableError"


class EngineDeadError(UnavailableError):
    """The engine process has ended; no request can be answered any more."""


class RequestFailedError(QuireError):
    """The engine failed while it worked on this request; others were not touched."""
