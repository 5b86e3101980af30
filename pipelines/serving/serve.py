"""Become the server of a registered model: what ``mlflow models serve`` starts, as this very process.

``mlflow models serve`` starts its server as a child and does not pass signals on; in a container, where it is process 1, a signal
to stop would not even end it. Here the server gets the signal itself, and finishes the requests in work.
"""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from pathlib import Path

from ghn.errors import InputError
from pipelines.process import tune_process
from pipelines.registry import fetch_served
from pipelines.serving.limits import Limits


def serve(uri: str, tracking_uri: str | None, *, host: str, port: int, workers: int = 1) -> None:
    """Fetch a registered model and serve it; does not return.

    Args:
        uri: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, or the folder of a logged model.
        tracking_uri: of MLflow.
        host: address to listen on.
        port: to listen on.
        workers: processes; each has its own limits, turns and metrics.

    Raises:
        InputError: if there is no such model, or a setting has a bad value.
        StorageError: if it can not be fetched.

    """
    limits = Limits.from_environment()  # complains here, not in the server's log
    from mlflow.pyfunc import scoring_server

    folder = fetch_served(uri, tracking_uri, _cache())
    command, environment = scoring_server.get_cmd(
        str(folder),
        port,
        host,  # type: ignore[arg-type] # declared as a number
        timeout=_above(limits.seconds),
        nworkers=workers,
    )
    program, *arguments = shlex.split(command)
    if program != "uvicorn":
        raise InputError(f"this version of MLflow serves with {program!r}; use `mlflow models serve`")
    tune_process()
    sys.stdout.flush()
    arguments = ["-m", "uvicorn", "--timeout-graceful-shutdown", str(_above(limits.seconds)), *arguments]
    os.execve(sys.executable, [sys.executable, *arguments], {**environment, "OMP_NUM_THREADS": "1"})  # noqa: S606


def _cache() -> Path:
    """Return the folder for fetched models: the next start finds them there, and their compiled loops."""
    home = Path.home()
    return (home if os.access(home, os.W_OK) else Path(tempfile.mkdtemp(prefix="ghn-"))) / ".cache" / "ghn" / "served"


def _above(seconds: float) -> int:
    """Return whole seconds above a request's own limit: the server should not give up before the guard does."""
    return int(seconds) + 30
