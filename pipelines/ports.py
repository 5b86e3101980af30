"""Free ports on loopback, for servers and ranks that this machine starts itself."""

from __future__ import annotations

import socket

from ghn.errors import EnvironmentSetupError


def open_socket() -> socket.socket:
    """Return a socket that listens on 127.0.0.1; :class:`EnvironmentSetupError` if none can be opened."""
    try:
        return socket.create_server(("127.0.0.1", 0))
    except OSError as error:
        raise EnvironmentSetupError(
            f"can not open a port on 127.0.0.1: {error}; check the loopback interface"
        ) from error


def free_port() -> int:
    """Return a port on 127.0.0.1 that nobody listens on; errors as in :func:`open_socket`."""
    with open_socket() as probe:
        port: int = probe.getsockname()[1]
    return port
