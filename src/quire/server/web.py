"""The web server around the application: uvicorn with our limits, TLS, and room for its connections."""

from __future__ import annotations

import contextlib
import resource
import ssl
from typing import Any

import uvicorn

from quire.config import ServerConfig
from quire.errors import ConfigError
from quire.server.asgi import App
from quire.server.limits import guarded_protocol

SPARE_FILES = 256
"""Open files besides connections."""


def web_server(app: App, config: ServerConfig) -> uvicorn.Server:
    """A server that leaves signals to its owner.

    Raises:
        ConfigError: the TLS files cannot be used.
    """
    settings = uvicorn.Config(
        app,
        http=guarded_protocol(config.max_connections),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nobody asks for the client's address
        timeout_keep_alive=75,
        **_tls(config),
    )
    try:
        settings.load()
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"The TLS files cannot be used: {_reason(error)}. {_named(config)}") from None
    server = uvicorn.Server(settings)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    return server


def check_tls(config: ServerConfig) -> None:
    """Find out before a model is loaded whether the TLS files can be used.

    Raises:
        ConfigError: they cannot.
    """
    if config.ssl_certfile is None:  # uvicorn would serve plain HTTP
        for name in ("ssl_keyfile", "ssl_ca_certs"):
            if getattr(config, name) is not None:
                raise ConfigError(f"--{name.replace('_', '-')} needs --ssl-certfile.")
        if config.ssl_cert_reqs:
            raise ConfigError("--ssl-cert-reqs needs --ssl-certfile and --ssl-ca-certs.")
        return
    if config.ssl_cert_reqs and config.ssl_ca_certs is None:
        raise ConfigError("--ssl-cert-reqs needs --ssl-ca-certs: whose certificates to take.")
    web_server(_nothing, config)


def make_room(max_connections: int) -> None:
    """Raise the limit of open files as far as that many connections need, and the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max_connections + SPARE_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _tls(config: ServerConfig) -> dict[str, Any]:
    if config.ssl_certfile is None:
        return {}
    return {
        "ssl_keyfile": config.ssl_keyfile,
        "ssl_certfile": config.ssl_certfile,
        "ssl_ca_certs": config.ssl_ca_certs,
        "ssl_cert_reqs": config.ssl_cert_reqs,
    }


def _reason(error: OSError) -> str:
    return error.reason if isinstance(error, ssl.SSLError) and error.reason else error.strerror or type(error).__name__


def _named(config: ServerConfig) -> str:
    names = ("ssl_certfile", "ssl_keyfile", "ssl_ca_certs")
    given = (f"--{name.replace('_', '-')} {getattr(config, name)!r}" for name in names if getattr(config, name))
    return "Given: " + ", ".join(given) + "."


async def _nothing(scope: Any, receive: Any, send: Any) -> None:
    """No application."""
