"""The ``ghn`` command as its users run it: within this process, which is quick, or as a process of its own."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from pipelines import cli

GHN_COMMAND = str(Path(sys.executable).with_name("ghn"))
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def ghn(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in this process; leave its environment, signal handlers and folder as they were.

    What other processes print is not in the result: commands that start some belong to :func:`ghn_process`.
    """
    stdout, stderr = io.StringIO(), io.StringIO()
    with (
        _as_process(["ghn", *arguments]),
        contextlib.chdir(cwd or Path.cwd()),
        mock.patch.dict(os.environ, environment),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        code = _run()
    return subprocess.CompletedProcess(["ghn", *arguments], code, stdout.getvalue(), stderr.getvalue())


def ghn_process(
    *arguments: str, cwd: Path | None = None, timeout: float = 600, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command as a process of its own."""
    return subprocess.run(
        [GHN_COMMAND, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
        timeout=timeout,
    )


def refused(done: subprocess.CompletedProcess[str], *named: str) -> None:
    """Check that a command ended with one message that says all of ``named``, and no traceback."""
    assert done.returncode not in (0, None), done.stdout
    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    messages = [line for line in done.stderr.splitlines() if line.startswith(("ghn: ", "Error: "))]
    assert len(messages) == 1, done.stderr
    for text in named:
        assert text in messages[0], messages[0]


def _run() -> int:
    """Return the exit code with which Python itself would end."""
    try:
        cli.main()
    except SystemExit as left:
        if left.code is None or isinstance(left.code, int):
            return left.code or 0
        sys.stderr.write(f"{left.code}\n")
        return 1
    except Exception:
        traceback.print_exc()
        return 1
    return 0


@contextlib.contextmanager
def _as_process(argv: list[str]) -> Iterator[None]:
    """Let this process look like a new one that runs ``argv``; undo what a command changes for the rest of its life."""
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    tracking = _tracking_uri()
    with (
        mock.patch.object(sys, "argv", argv),
        mock.patch.object(sys, "path", list(sys.path)),
        mock.patch.object(sys.modules["__main__"], "__package__", None),  # else help would name `python -m pytest`
        mock.patch.dict(os.environ),
    ):
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            if _tracking_uri() != tracking:
                sys.modules["mlflow"].set_tracking_uri(tracking)


def _tracking_uri() -> str | None:
    """Return the address that MLflow was told, if any; that in the environment does not count."""
    mlflow = sys.modules.get("mlflow")
    with mock.patch.dict(os.environ):
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        return mlflow.get_tracking_uri() if mlflow and mlflow.is_tracking_uri_set() else None
