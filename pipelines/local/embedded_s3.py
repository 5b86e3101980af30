"""An S3 server for this machine alone, so that demo and smoke runs need no account: rclone's, over a local folder.

It listens on loopback, asks for credentials made at its first start, and keeps its objects as plain files, so they
survive it. ``server.json`` in its folder (readable by the owner only) holds address, credentials and process id.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ghn.errors import EnvironmentSetupError
from pipelines.ports import free_port

BUCKET = "ghn"
FOLDER_VARIABLE = "GHN_S3"
_SERVER = "server.json"
_START_TIMEOUT_S = 20.0
_STOP_TIMEOUT_S = 5.0


def start(folder: Path) -> dict[str, str]:
    """Start the server over ``folder`` unless it runs already; return the environment that clients need.

    Raises:
        EnvironmentSetupError: if rclone is not installed or the server does not come up.

    """
    data = folder / "data"
    (data / BUCKET).mkdir(parents=True, exist_ok=True)
    known = _read(folder)
    if known and _is_running(known, data):
        return client_environment(folder)
    executable = shutil.which(
        "rclone", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    )
    if executable is None:
        raise EnvironmentSetupError("the embedded S3 server needs rclone; run `make setup`, or set AWS_ENDPOINT_URL")
    port = free_port()
    server = {
        "endpoint": f"http://127.0.0.1:{port}",
        "access_key": known.get("access_key") or f"ghn-{secrets.token_hex(6)}",
        "secret_key": known.get("secret_key") or secrets.token_hex(20),
    }
    environment = {
        **os.environ,
        "RCLONE_AUTH_KEY": f'"{server["access_key"]},{server["secret_key"]}"',  # not visible in the process list
        "RCLONE_CONFIG": os.devnull,
    }
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(
            [executable, "serve", "s3", "--etag-hash", "", "--addr", f"127.0.0.1:{port}", str(data.resolve())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not _answers(port):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise EnvironmentSetupError(f"the embedded S3 server did not start; see {folder / 'server.log'}")
        time.sleep(0.05)
    _write_private(folder / _SERVER, {**server, "pid": process.pid})
    return client_environment(folder)


def stop(folder: Path) -> None:
    """Stop the server of ``folder`` if it runs; its objects stay."""
    known = _read(folder)
    if not known or not _is_running(known, folder / "data"):
        return
    os.kill(known["pid"], signal.SIGTERM)
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    while _is_running(known, folder / "data"):
        if time.monotonic() > deadline:
            os.kill(known["pid"], signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(known["pid"], os.WNOHANG)  # reap it where it is this process's own child
        time.sleep(0.05)


@contextlib.contextmanager
def running(folder: Path) -> Iterator[dict[str, str]]:
    """Run the server for the length of a block, unless it ran before; give the environment for clients."""
    known = _read(folder)
    was_running = bool(known) and _is_running(known, folder / "data")
    environment = start(folder)
    try:
        yield environment
    finally:
        if not was_running:
            stop(folder)


def client(folder: Path) -> contextlib.AbstractContextManager[dict[str, str]]:
    """Return what gives, for the length of a block, the variables that lead to an object store.

    None are needed where ``AWS_ENDPOINT_URL`` names one already; else the server of ``folder`` runs.
    """
    return contextlib.nullcontext(dict[str, str]()) if os.environ.get("AWS_ENDPOINT_URL") else running(folder)


def run_client(folder: Path, command: Sequence[str]) -> int:
    """Run a command as a client of the server of ``folder`` (or of ``AWS_ENDPOINT_URL``, if set); return its exit code.

    Raises:
        EnvironmentSetupError: if there is no such command.

    """
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    executable = shutil.which(command[0], path=search)
    if executable is None:
        raise EnvironmentSetupError(f"no command {command[0]!r}: install it, or check its name")
    with client(folder) as variables:
        process = subprocess.Popen([executable, *command[1:]], env={**os.environ, **variables, "PATH": search})
        previous = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        try:
            while True:
                with contextlib.suppress(KeyboardInterrupt):  # the command gets it too, and decides
                    code = process.wait()
                    return code if code >= 0 else 128 - code  # as a shell says which signal ended it
        finally:
            signal.signal(signal.SIGTERM, previous)


def client_environment(folder: Path) -> dict[str, str]:
    """Return the standard variables with which boto3, MLflow and other clients reach the server of ``folder``.

    Raises:
        EnvironmentSetupError: if no server was ever started there.

    """
    known = _read(folder)
    if not known:
        raise EnvironmentSetupError(f"no embedded S3 server at {folder}; start it with `ghn s3 start {folder}`")
    return {
        "AWS_ENDPOINT_URL": known["endpoint"],
        "AWS_ACCESS_KEY_ID": known["access_key"],
        "AWS_SECRET_ACCESS_KEY": known["secret_key"],
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        "MLFLOW_S3_ENDPOINT_URL": known["endpoint"],
    }


def use_configured() -> None:
    """Make this process a client: of ``AWS_ENDPOINT_URL`` if set, else of the server that ``GHN_S3`` names, if any."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        os.environ.setdefault("MLFLOW_S3_ENDPOINT_URL", endpoint)
    elif folder := os.environ.get(FOLDER_VARIABLE):
        with contextlib.suppress(EnvironmentSetupError):  # `ghn s3 start` itself runs before there is one
            os.environ.update(client_environment(Path(folder)))


def _read(folder: Path) -> dict[str, Any]:
    try:
        known: dict[str, Any] = json.loads((folder / _SERVER).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return known


def _write_private(file: Path, content: dict[str, Any]) -> None:
    temporary = file.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        json.dump(content, stream)
    temporary.replace(file)


def _is_running(known: dict[str, Any], data: Path) -> bool:
    """Whether the remembered process is still that server (process ids are used again by others)."""
    try:
        status = Path(f"/proc/{known['pid']}/status").read_text()
        command = Path(f"/proc/{known['pid']}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return "State:\tZ" not in status and str(data.resolve()).encode() in command


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
