"""What the routes share: the engine's client, the text service, the names under which the model is served."""

from __future__ import annotations

import hashlib
import secrets
import time

from quire.errors import EngineDeadError, NotFoundError, UnavailableError
from quire.frontend.service import EngineClient, TextService
from quire.frontend.validate import REQUEST_ID
from quire.observability.metrics import Metrics
from quire.server.admission import Admission
from quire.server.asgi import Scope, header
from quire.version import __version__


class ServerState:
    """Owns the server's life: loading, serving, draining.

    Args:
        client: the engine.
        names: under which the model is served; the first is the one in answers.
        metrics: what /metrics shows.
        admission: who may wait for the engine; default: whoever comes.
        strict: refuse requests with fields that have no effect.
        trust_request_chat_template: whether a request may bring a chat template of its own.
    """

    def __init__(
        self,
        client: EngineClient,
        names: tuple[str, ...],
        metrics: Metrics,
        admission: Admission | None = None,
        *,
        strict: bool = False,
        trust_request_chat_template: bool = False,
    ) -> None:
        self.client = client
        self.names = names
        self.metrics = metrics
        self.admission = admission or Admission()
        metrics.usage_of_keys = self.admission.rates.usage
        self.strict = strict
        self.trust_request_chat_template = trust_request_chat_template
        self.created = int(time.time())
        self.draining = False
        self.service: TextService | None = None
        self.fingerprint = f"quire-{__version__}"

    def serve(self, service: TextService) -> None:
        """The model is loaded; take requests from now on."""
        facts = repr((self.names, self.client.ready)).encode()
        self.fingerprint = f"quire-{__version__}-{hashlib.sha256(facts).hexdigest()[:8]}"
        if self.client.ready is not None:
            self.admission.serve(self.client.ready)
        self.service = service

    def require_service(self) -> TextService:
        """The text service, if requests are taken now.

        Raises:
            UnavailableError: loading, draining or dead.
        """
        if self.client.dead:
            raise EngineDeadError(f"{self.client.reason}; it is started again, or the server stops.")
        if self.draining:
            raise UnavailableError("The server is stopping and takes no new requests.")
        if self.service is None:
            raise UnavailableError("The model is still loading.")
        return self.service

    def check_model(self, name: str | None) -> None:
        """Refuse a model that is not served; none named means the one there is.

        Raises:
            NotFoundError: with the names that are served.
        """
        if name is not None and name not in self.names:
            shown = name.encode("unicode_escape").decode()[:100]
            served = ", ".join(f"'{known}'" for known in self.names)
            message = f"The model '{shown}' is not served here; there is {served}."
            raise NotFoundError(message, "model", "model_not_found")


def new_id(prefix: str) -> str:
    """A response id; never derived from anything a client sent."""
    return f"{prefix}-{secrets.token_hex(16)}"


def request_id(scope: Scope) -> str:
    """The client's X-Request-Id if it is short and plain, else a new one; for logs and for the response's header."""
    given = header(scope, b"x-request-id")
    return given if given and REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
