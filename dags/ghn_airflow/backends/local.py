"""Run a command as a process of this machine."""

from __future__ import annotations

import sys
from pathlib import Path

from ghn_airflow.backends.base import BackendError, Job, Log, Process, ProcessBackend


def ghn_command() -> str:
    """Path of the ``ghn`` command of this environment."""
    return str(Path(sys.executable).with_name("ghn"))


class LocalBackend(ProcessBackend):
    """The default: no other machine, one node."""

    def run(self, job: Job, log: Log) -> None:
        """Run the command; errors as in :meth:`Backend.run`."""
        if job.nodes != 1:
            raise BackendError(
                f"the back-end local has one node, not {job.nodes}: choose hosts, container or kubernetes, or set "
                "training.processes for more ranks on this machine"
            )
        command = (ghn_command(), *job.arguments)
        self.run_processes([Process(label="", command=command, environment=job.environment)], log, job.stop_s)
