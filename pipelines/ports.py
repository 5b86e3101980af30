"""Free ports on loopback, for servers and ranks that this machine starts itself."""

from __future__ import annotations

import socket

from ghn.errors import EnvironmentSetupError


def free_port() -> int:
    """Return a port on 127.0.0.1 that nobody listens on; :class:`EnvironmentSetupError` if none can be opened."""
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
    except OSError as error:
        raise EnvironmentSetupError(
            f"can not open a port on 127.0.0.1: {error}; check the loopback interface"
        ) from error
    return port
