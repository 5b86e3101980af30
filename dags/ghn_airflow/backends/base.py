"""What every back-end does, and the processes on this machine through which most of them do it."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NoReturn

REPOSITORY = Path(__file__).resolve().parents[3]
_TETHER = Path(__file__).resolve().parents[1] / "tether.py"
_AFTER_FAILURE_S = 15.0
"""For which the other nodes may go on after one failed: they end by themselves, with better messages."""

FINAL_CODES = (2, 7)
"""Exit codes of ``ghn`` for wrong input and for alarms (``ghn.errors``); a DAG's process does not import that."""
NOTHING_TO_DO = 99

PASSED = (
    *("AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "GHN_ARTIFACTS"),
    *("GHN_S3_ADDRESSING", "GHN_S3_DEADLINE_S", "GHN_S3_PART_MIB", "GHN_S3_PARALLEL"),
    *("MLFLOW_S3_ENDPOINT_URL", "MLFLOW_TRACKING_URI", "OMP_NUM_THREADS"),
)
"""A worker's variables that a command in a container or pod needs and that are not secret; hosts have their own."""
RENDEZVOUS_PORT = 29531

Log = Callable[[str], None]


class BackendError(RuntimeError):
    """The back-end can not run the command, or the command failed; the message says what to do.

    ``final`` tells that another try would end in the same way: wrong input, or an alarm.
    """

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


class NothingToDoError(Exception):
    """The command found nothing to do; the message says why."""


def raise_for(what: str, code: int | None, last: Sequence[str]) -> NoReturn:
    """Raise what an exit code (``None``: it is not known) and the last lines of a command say."""
    if code == NOTHING_TO_DO:
        raise NothingToDoError(" | ".join(last[-1:]))
    ended = "failed" if code is None else f"failed with exit code {code}"
    raise BackendError(f"{what} {ended}; its last lines: {' | '.join(last)}", final=code in FINAL_CODES)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One ``ghn`` command.

    Attributes:
        name: the same for every try of the same task of the same DAG run, and for nothing else; lower-case letters, digits, ``-``.
        arguments: behind ``ghn``.
        environment: added to that of the process; never shown anywhere.
        nodes: on how many the command runs, as one training.
        stop_s: how long it may take to stop, with a checkpoint.

    """

    name: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    nodes: int = 1
    stop_s: float = 60.0


class Backend(ABC):
    """One kind of place where commands run."""

    @abstractmethod
    def run(self, job: Job, log: Log) -> None:
        """Run a job to its end, with its output as log lines.

        What an earlier try of the same job left behind is stopped first, or joined.

        Raises:
            BackendError: if it fails, with its last lines.
            NothingToDoError: if it says so.

        """

    @abstractmethod
    def stop(self) -> None:
        """Stop the running job on all nodes; called from a signal handler, so it only begins to."""


@dataclass(frozen=True, kw_only=True)
class Process:
    """A command on this machine: a label for its lines (or ""), its argument list, and more variables for it."""

    label: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


class ProcessBackend(Backend):
    """A back-end that runs one or more commands on this machine, each in a process group of its own.

    They end together: when one fails the others are stopped. None outlives the task, whatever happens to it.
    """

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[bytes]] = []
        self._stopping = False
        self._failed: int | None = None  # which process failed first

    def run_processes(self, processes: Sequence[Process], log: Log, stop_s: float) -> None:
        """Run commands together; raises :class:`BackendError` with the last lines of the first one that failed."""
        tails: list[list[str]] = [[] for _ in processes]

        def tell(i: int, line: str) -> None:
            label = processes[i].label
            log(f"[{label}] {line}" if label else line)
            tails[i] = [*tails[i][-4:], line]

        try:
            self._follow(processes, tell, stop_s)
        finally:
            self._end(stop_s)
        if self._stopping:
            raise BackendError("the task was stopped")
        codes = [process.returncode for process in self._started]
        failed = self._failed if self._failed is not None else next((i for i, code in enumerate(codes) if code), None)
        if failed is None:
            return
        where = f" on {processes[failed].label}" if processes[failed].label else ""
        raise_for(f"the command{where}", codes[failed], tails[failed])

    def _follow(self, processes: Sequence[Process], tell: Callable[[int, str], None], stop_s: float) -> None:
        """Start the commands and tell their lines, until all have ended or it is time to stop them."""
        watched = os.getppid()
        rest = [b""] * len(processes)
        deadline: float | None = None
        with selectors.DefaultSelector() as selector:
            for i, process in enumerate(processes):
                selector.register(_output(self._start(process)), selectors.EVENT_READ, i)
            while selector.get_map():
                for key, _ in selector.select(timeout=1.0):
                    content = os.read(key.fd, 1 << 16)
                    *lines, rest[key.data] = (rest[key.data] + (content or b"\n")).split(b"\n")
                    for line in lines if content else filter(None, lines):
                        tell(key.data, line.decode(errors="replace").rstrip())
                    if not content:
                        selector.unregister(key.fileobj)
                if os.getppid() != watched:
                    raise BackendError("the supervisor of this task is gone; another try goes on")
                codes = [process.poll() for process in self._started]
                if self._failed is None:
                    self._failed = next((i for i, code in enumerate(codes) if code), None)
                if deadline is None and (None not in codes or any(codes) or self._stopping):
                    deadline = time.monotonic() + (stop_s if self._stopping else _AFTER_FAILURE_S)
                if deadline is not None and time.monotonic() > deadline:
                    return  # something holds the output open, or does not end by itself

    def stop(self) -> None:
        """Ask all processes to stop; they end in :meth:`run_processes`."""
        self._stopping = True
        self._signal(signal.SIGTERM)

    def _start(self, process: Process) -> subprocess.Popen[bytes]:
        started = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_TETHER), str(os.getpid()), *process.command],
            cwd=REPOSITORY,
            env={**os.environ, **process.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            start_new_session=True,
        )
        self._started.append(started)
        if self._stopping:  # the signal came while the process was started
            self._signal(signal.SIGTERM)
        return started

    def _end(self, stop_s: float) -> None:
        """Make sure that nothing of the job is left."""
        if any(process.poll() is None for process in self._started):
            self._signal(signal.SIGTERM)
        deadline = time.monotonic() + stop_s
        while any(process.poll() is None for process in self._started) and time.monotonic() < deadline:
            time.sleep(0.1)
        self._signal(signal.SIGKILL)  # of what processes that ended left behind in their groups, too
        for process in self._started:
            process.wait()

    def _signal(self, number: int) -> None:
        for process in self._started:
            if number == signal.SIGKILL or process.poll() is None:
                try:
                    os.killpg(process.pid, number)
                except (ProcessLookupError, PermissionError):
                    continue


def _output(process: subprocess.Popen[bytes]) -> IO[bytes]:
    if process.stdout is None:
        raise BackendError("the process has no output")
    return process.stdout
