"""Train over the hosts of a host file; other commands run on this machine.

A host file has a line for each host, as DeepSpeed's have: ``NAME slots=RANKS``, with ``address=`` where others reach it by another
name and ``interface=`` for the network device. How a command gets to a host is up to ``GHN_HOST_COMMAND``, an argument list
with ``{name}`` in it; nothing is assumed to be ssh.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from ghn_airflow.backends.base import RENDEZVOUS_PORT, BackendError, Job, Log, Process
from ghn_airflow.backends.local import LocalBackend, ghn_command

_HOSTFILE_VARIABLE, _COMMAND_VARIABLE, _PORT_VARIABLE = "GHN_HOSTFILE", "GHN_HOST_COMMAND", "GHN_MASTER_PORT"
_DEFAULT_COMMAND = "ssh -tt -o BatchMode=yes {name}"
_SHELLS = ("ssh", "pdsh", "rsh")
"""Programs that join their arguments and hand them to a shell on the other side: they get one quoted argument."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """A line of the host file."""

    name: str
    slots: int = 1
    address: str = ""
    interface: str = ""

    @classmethod
    def parse(cls, line: str, where: str) -> Host:
        """Read ``NAME slots=2 address=10.0.0.1 interface=eth0``; raises :class:`BackendError` for anything else."""
        name, *settings = line.split()
        known: dict[str, str] = {}
        for setting in settings:
            key, equals, value = setting.partition("=")
            if not equals or key not in ("slots", "address", "interface"):
                raise BackendError(f"{where}: {setting!r} is not slots=, address= or interface=")
            known[key] = value
        slots = known.pop("slots", "1")
        if not slots.isdecimal() or int(slots) < 1 or name.startswith("-"):
            raise BackendError(f"{where}: write NAME slots=RANKS")
        return cls(name=name, slots=int(slots), **known)


def read_hostfile(path: str) -> list[Host]:
    """Return the hosts of a file; ``#`` begins a comment."""
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise BackendError(
            f"no host file at {path!r} ({error}): set {_HOSTFILE_VARIABLE} for Airflow's workers"
        ) from error
    lines = [(number, line.partition("#")[0].strip()) for number, line in enumerate(text.splitlines(), 1)]
    return [Host.parse(line, f"{path}, line {number}") for number, line in lines if line]


class HostsBackend(LocalBackend):
    """One command for each rank, on the first ``nodes`` hosts."""

    def run(self, job: Job, log: Log) -> None:
        """Run the command; errors as in :meth:`Backend.run`."""
        if job.nodes == 1:
            super().run(job, log)
            return
        hosts = read_hostfile(os.environ.get(_HOSTFILE_VARIABLE, ""))
        if len(hosts) < job.nodes:
            raise BackendError(f"{os.environ[_HOSTFILE_VARIABLE]} has {len(hosts)} hosts, not {job.nodes}; add some")
        self.run_processes(rank_processes(hosts[: job.nodes], job), log, job.stop_s)


def rank_processes(hosts: list[Host], job: Job) -> list[Process]:
    """Return the commands of all ranks; variables that are not secret travel in the argument list."""
    template = shlex.split(os.environ.get(_COMMAND_VARIABLE, _DEFAULT_COMMAND))
    world = sum(host.slots for host in hosts)
    processes: list[Process] = []
    for host in hosts:
        for slot in range(host.slots):
            variables = {
                "RANK": str(len(processes)),
                "LOCAL_RANK": str(slot),
                "WORLD_SIZE": str(world),
                "LOCAL_WORLD_SIZE": str(host.slots),
                "MASTER_ADDR": hosts[0].address or hosts[0].name,
                "MASTER_PORT": os.environ.get(_PORT_VARIABLE, str(RENDEZVOUS_PORT)),
                **(
                    {"GLOO_SOCKET_IFNAME": host.interface, "NCCL_SOCKET_IFNAME": host.interface}
                    if host.interface
                    else {}
                ),
                **{name: os.environ[name] for name in ("DS_ACCELERATOR", "OMP_NUM_THREADS") if name in os.environ},
            }
            command = ["env", *(f"{name}={value}" for name, value in variables.items()), ghn_command(), *job.arguments]
            way = [part.replace("{name}", host.name) for part in template]
            if way and Path(way[0]).name in _SHELLS:
                command = [shlex.join(command)]
            processes.append(
                Process(
                    label=f"{host.name}, rank {len(processes)}", command=[*way, *command], environment=job.environment
                )
            )
    return processes
