"""One operator: a task is one ``ghn`` command, run as a local process with an argument list (never a shell)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from airflow.sdk import BaseOperator

REPOSITORY = Path(__file__).resolve().parents[1]


class GhnOperator(BaseOperator):
    """Run ``ghn ARGUMENTS`` in the repository's folder; its output becomes the task's log.

    Args:
        arguments: the command line behind ``ghn``; templated, empty strings are left out.
        environment: variables added to the task's own; templated.

    """

    template_fields = ("arguments", "environment")
    ui_color = "#dbeafe"

    def __init__(self, *, arguments: Sequence[str], environment: dict[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.arguments = list(arguments)
        self.environment = dict(environment or {})
        self._process: subprocess.Popen[str] | None = None

    def execute(self, context: Any) -> None:
        """Run the command to its end; raise ``RuntimeError`` with its last lines if it fails."""
        ghn = Path(sys.executable).with_name("ghn")
        command = [str(ghn), *(argument for argument in self.arguments if argument)]
        self.log.info("running: ghn %s", " ".join(command[1:]))
        self._process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env={**os.environ, **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        tail: list[str] = []
        try:
            for line in self._process.stdout or ():
                self.log.info("%s", line.rstrip())
                tail = [*tail[-4:], line.rstrip()]
            code = self._process.wait()
        finally:
            self.on_kill()
        if code:
            raise RuntimeError(f"ghn {command[1]} ended with exit code {code}: " + " | ".join(tail))

    def on_kill(self) -> None:
        """Stop the command and everything that it started, if it still runs."""
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
