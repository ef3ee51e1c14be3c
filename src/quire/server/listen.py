"""The listening socket, bound before anything else: a port in use is known at once, not after a model has loaded."""

from __future__ import annotations

import errno
import socket

from quire.errors import ConfigError, StartupError

BACKLOG = 2048


def listen(host: str, port: int) -> socket.socket:
    """A TCP socket that listens.

    Raises:
        StartupError: the port is taken; the message names a free one.
        ConfigError: the address cannot be listened on.
    """
    return _bound(host, port, shared=False, listening=True)


def listen_together(host: str, port: int, count: int, *, with_others: bool = False) -> list[socket.socket]:
    """Sockets on one port, between which the kernel divides connections; the first listens, the others do not yet.

    with_others: another server may be on the port, and gets all connections until one of these listens: none does yet.

    Raises:
        StartupError, ConfigError: as `listen`.
    """
    if with_others:
        return [_bound(host, port, shared=True, listening=False) for _ in range(count)]
    if count == 1:
        return [listen(host, port)]
    first = listen(host, port)  # sharing works with strangers, too: see first that there are none
    port = first.getsockname()[1]
    first.close()
    return [_bound(host, port, shared=True, listening=i == 0) for i in range(count)]


def _bound(host: str, port: int, *, shared: bool, listening: bool) -> socket.socket:
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConfigError(f"--host {host!r} is no address of this machine: {error.strerror}.") from None
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
        if listening:
            sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise _explain(error, host, port) from None
    sock.setblocking(False)
    return sock


def _explain(error: OSError, host: str, port: int) -> Exception:
    if error.errno == errno.EADDRINUSE:
        free = _free_port(host, port)
        hint = f"; --port {free} is free" if free else ", choose another with --port"
        return StartupError(f"Port {port} on {host} is in use{hint}.")
    if error.errno == errno.EACCES:
        return ConfigError(f"--port {port} needs more rights than this user has; ports from 1024 do not.")
    return ConfigError(f"Cannot listen on --host {host} --port {port}: {error.strerror}.")


def _free_port(host: str, port: int) -> int | None:
    for candidate in range(port + 1, min(port + 50, 65536)):
        try:
            listen(host, candidate).close()
        except (StartupError, ConfigError):
            continue
        return candidate
    return None


def url_of(sock: socket.socket, scheme: str = "http") -> str:
    """The URL of a bound socket, with an address that a browser on this machine can open."""
    host, port = sock.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"{scheme}://{host}:{port}"
