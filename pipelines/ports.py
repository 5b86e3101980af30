"""Free ports on loopback, for servers and ranks that this machine starts itself."""

from __future__ import annotations

import socket

from ghn.errors import EnvironmentSetupError


def bound_socket() -> socket.socket:
    """Return a socket with a free port on 127.0.0.1; it does not listen yet.

    Raises:
        EnvironmentSetupError: if none can be opened.

    """
    bound = socket.socket()
    try:
        bound.bind(("127.0.0.1", 0))
    except OSError as error:
        bound.close()
        raise EnvironmentSetupError(
            f"can not open a port on 127.0.0.1: {error}; check the loopback interface"
        ) from error
    return bound


def free_port() -> int:
    """Return a port on 127.0.0.1 that nobody listens on; errors as in :func:`bound_socket`."""
    with bound_socket() as probe:
        port: int = probe.getsockname()[1]
    return port
