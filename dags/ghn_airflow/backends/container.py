"""Run a command in containers of the training image: one for each node, on a network of their own.

The containers have the job's name, so a new try finds and removes what a try that was killed left behind. Secrets go into them
by the names of variables only, which the client reads from its own environment.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import subprocess

from ghn_airflow.backends.base import PASSED, RENDEZVOUS_PORT, BackendError, Job, Log, Process, ProcessBackend

_IMAGE_VARIABLE, _DOCKER_VARIABLE, _VOLUMES_VARIABLE = "GHN_IMAGE", "GHN_DOCKER", "GHN_CONTAINER_VOLUMES"
_PASSED = (*PASSED, "AWS_", "MLFLOW_", "GHN_CACHE", "GHN_GIT_COMMIT", "GHN_IMAGE_DIGEST")  # by their beginnings


class ContainerBackend(ProcessBackend):
    """Docker, or what ``GHN_DOCKER`` names."""

    def __init__(self) -> None:
        super().__init__()
        self._names: list[str] = []
        self._stop_s = 0.0
        self._docker = shlex.split(os.environ.get(_DOCKER_VARIABLE, "docker"))

    def run(self, job: Job, log: Log) -> None:
        """Run the command; errors as in :meth:`Backend.run`."""
        names = [f"{job.name}-{i}" for i in range(job.nodes)]
        self._names, self._stop_s = names, job.stop_s
        self._remove(names, job.name)
        digest = self._call("image", "inspect", "--format", "{{.Id}}", _image(), check=False).strip()
        if digest:  # it becomes a tag of runs and versions in MLflow
            job = dataclasses.replace(job, environment={**job.environment, "GHN_IMAGE_DIGEST": digest})
        if job.nodes > 1:
            self._call("network", "create", job.name)
        try:
            self.run_processes([self._process(job, names, i) for i in range(job.nodes)], log, job.stop_s)
        finally:
            self._remove(names, job.name)

    def stop(self) -> None:
        """Ask all containers to stop, by a client of its own that outlives this task: Airflow gives it five seconds."""
        if self._names:
            subprocess.Popen(
                [*self._docker, "stop", "--time", str(int(self._stop_s)), *self._names],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        super().stop()

    def _process(self, job: Job, names: list[str], i: int) -> Process:
        """Return the client that runs one container and passes signals on to it."""
        environment = {**os.environ, **job.environment}
        command = [*self._docker, "run", "--rm", "--init", "--name", names[i], "--hostname", names[i]]
        command += ["--entrypoint", "ghn"]
        command += [part for name in sorted(environment) if name.startswith(_PASSED) for part in ("--env", name)]
        for volume in os.environ.get(_VOLUMES_VARIABLE, "").split():
            command += ["--volume", volume]
        if job.nodes > 1:
            ranks = {"RANK": i, "WORLD_SIZE": job.nodes, "MASTER_ADDR": names[0], "MASTER_PORT": RENDEZVOUS_PORT}
            command += ["--network", job.name]
            command += [part for name, value in ranks.items() for part in ("--env", f"{name}={value}")]
        elif network := os.environ.get("GHN_CONTAINER_NETWORK"):
            command += ["--network", network]
        command += [_image(), *job.arguments]
        return Process(label=f"node {i}" if job.nodes > 1 else "", command=command, environment=job.environment)

    def _remove(self, names: list[str], network: str) -> None:
        """Remove the job's containers and network; what is not there is fine."""
        self._call("rm", "--force", *names, check=False)
        self._call("network", "rm", network, check=False)

    def _call(self, *arguments: str, check: bool = True) -> str:
        """Run the client and return what it says."""
        try:
            done = subprocess.run([*self._docker, *arguments], capture_output=True, text=True, timeout=120)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BackendError(
                f"can not run {self._docker[0]}: {error}; install Docker or set {_DOCKER_VARIABLE}"
            ) from error
        if check and done.returncode:
            raise BackendError(f"docker {' '.join(arguments)}: {done.stderr.strip()}; is the engine running?")
        return "" if done.returncode else done.stdout


def _image() -> str:
    return os.environ.get(_IMAGE_VARIABLE, "ghn-train")
