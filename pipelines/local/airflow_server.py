"""Airflow, MLflow and an object store for this machine alone, from one command: to look around, and for the tests.

Everything lies in one folder and listens on loopback. Airflow's parts (API server, scheduler, DAG processor, triggerer) run as on
a real installation, with the LocalExecutor on SQLite or another database; a part that ends is started again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from ghn.errors import EnvironmentSetupError, InputError
from pipelines.local import embedded_s3
from pipelines.local.checkout import DAGS, REPOSITORY, airflow_settings, installed
from pipelines.ports import free_port
from pipelines.process import Signals
from pipelines.progress import emit
from pipelines.storage import LocalStore

_STATE = "servers.json"
_TETHER = DAGS / "ghn_airflow" / "tether.py"  # parts end with this process, however it ends
_PARTS = {
    "api-server": ("api-server",),
    "scheduler": ("scheduler", "--skip-serve-logs"),  # the API server reads the logs from disk
    "dag-processor": ("dag-processor",),
    "triggerer": ("triggerer", "--skip-serve-logs"),
}
_READY_TIMEOUT_S, _STOP_TIMEOUT_S, _MOST_RESTARTS, _RESTARTS_S = 180.0, 10.0, 10, 600.0


def serve(folder: Path, *, port: int, database: str | None = None) -> None:
    """Run everything until a signal to stop comes.

    Variables of the environment (Airflow's own, ``MLFLOW_TRACKING_URI``, ``AWS_ENDPOINT_URL``, ``GHN_...``) win over the
    defaults made here. ``servers.json`` in the folder says addresses and process ids once all parts answer.

    Args:
        folder: for databases, logs, objects and runs; used again, it goes on.
        port: of Airflow's pages.
        database: SQLAlchemy address of Airflow's database, e.g. ``postgresql+psycopg2://...`` (default: SQLite).

    Raises:
        InputError: if the folder is in use.
        EnvironmentSetupError: if a part does not start, or keeps ending.

    """
    folder = folder.resolve()
    settings = airflow_settings(folder / "airflow")
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_owned(folder))
        _check_port(port)
        stop = stack.enter_context(Signals(signal.SIGTERM, signal.SIGINT))
        environment = {**settings, **_defaults(folder, port, database), **os.environ}
        environment |= stack.enter_context(embedded_s3.client(folder / "s3"))
        servers = stack.enter_context(_Servers(folder, environment))
        servers.run_once("airflow", "db", "migrate")
        servers.run_once("airflow", "pools", "set", "ghn_training", "1", "one training at a time")
        if "MLFLOW_TRACKING_URI" not in os.environ:
            servers.start_mlflow()
        for name, arguments in _PARTS.items():
            servers.start(name, "airflow", *arguments)
        servers.wait_until_ready(f"http://127.0.0.1:{port}/api/v2/monitor/health", stop)
        if not stop.noted:
            _tell(folder, port, servers)
        while not stop.noted:
            servers.look_after()
            time.sleep(0.5)


@contextlib.contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """Hold the folder for this process; raises :class:`InputError` if another one does."""
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = read_state(folder).get("pid", "another one that is starting")
            raise InputError(f"{folder} is in use by process {owner}; stop it, or give another --folder") from None
        (folder / _STATE).unlink(missing_ok=True)
        yield


def _check_port(port: int) -> None:
    """Raise :class:`InputError` if something listens there already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise InputError(f"port {port} is in use; give another --port") from None


def read_state(folder: Path) -> dict[str, int]:
    """Return what ``servers.json`` says, nothing if it is not there."""
    try:
        state: dict[str, int] = json.loads((folder / _STATE).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return state


def _defaults(folder: Path, port: int, database: str | None) -> dict[str, str]:
    home = folder / "airflow"
    home.mkdir(exist_ok=True)
    address = f"http://127.0.0.1:{port}"
    settings = {
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",  # whoever reaches loopback; `ghn airflow` says so
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{address}/execution/",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": address,
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API__SECRET_KEY": _secret(home / "api-secret"),
        "AIRFLOW__API_AUTH__JWT_SECRET": _secret(home / "jwt-secret"),
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "10",
        "GHN_HOME": str(folder / "runs"),
        "GHN_ROOT": "s3://ghn/digits",
        "GHN_NAME": "ghn2-digits",
        "GHN_RECIPE": "embedded",
        "GHN_ARTIFACTS": "s3://ghn/mlflow",
    }
    return settings | ({"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database} if database else {})


def _secret(file: Path) -> str:
    """Return a secret that only the owner may read, made at the first call."""
    if not file.is_file():
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(secrets.token_hex(32))
    return file.read_text()


class _Servers:
    """The started parts, each in a session of its own, so that all that it started can be found."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder, self.environment = folder, dict(environment)
        self.addresses: dict[str, int] = {}
        self._logs = folder / "logs"
        self._logs.mkdir(exist_ok=True)
        self._commands: dict[str, list[str]] = {}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._sessions: list[int] = []
        self._restarts: list[float] = []

    def __enter__(self) -> _Servers:
        return self

    def __exit__(self, *_: object) -> None:
        """Stop all parts and everything that they started."""
        for process in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        while time.monotonic() < deadline and any(process.poll() is None for process in self._running.values()):
            time.sleep(0.1)
        for number in (signal.SIGTERM, signal.SIGKILL):  # tasks, which stop their commands; then what is left
            members = [pid for session in self._sessions for pid in _members(session)]
            for pid in members:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            if members and number == signal.SIGTERM:
                time.sleep(2.0)
        for process in self._running.values():
            process.wait()
        (self.folder / _STATE).unlink(missing_ok=True)

    def run_once(self, *command: str) -> None:
        """Run a command to its end."""
        log = self._logs / "setup.log"
        with log.open("ab") as stream:
            done = subprocess.run(
                [installed(command[0]), *command[1:]],
                env=self.environment,
                cwd=REPOSITORY,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        if done.returncode:
            raise EnvironmentSetupError(f"`{' '.join(command)}` failed; see {log}")

    def start(self, name: str, *command: str) -> None:
        """Start a part; its output goes to its log."""
        self._commands[name] = [installed(command[0]), *command[1:]]
        with (self._logs / f"{name}.log").open("ab") as stream:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_TETHER), str(os.getpid()), *self._commands[name]],
                env=self.environment,
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._running[name] = process
        self._sessions.append(process.pid)

    def start_mlflow(self) -> None:
        """Start MLflow's server on SQLite; artifacts go to the object store directly."""
        self.addresses["mlflow_port"] = port = free_port()
        self.start(
            "mlflow",
            *("mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"),
            *("--default-artifact-root", self.environment["GHN_ARTIFACTS"], "--no-serve-artifacts"),
        )
        self.environment["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{port}"

    def wait_until_ready(self, url: str, stop: Signals) -> None:
        """Wait until all of Airflow's parts say that they are healthy."""
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while not _is_healthy(url):
            self.look_after()
            if stop.noted:
                return
            if time.monotonic() > deadline:
                raise EnvironmentSetupError(f"Airflow did not come up in {_READY_TIMEOUT_S:g} s; see {self._logs}")
            time.sleep(0.5)

    def look_after(self) -> None:
        """Start parts again that have ended."""
        for name, process in list(self._running.items()):
            if process.poll() is None:
                continue
            now = time.monotonic()
            self._restarts = [*(then for then in self._restarts if now - then < _RESTARTS_S), now]
            if len(self._restarts) > _MOST_RESTARTS:
                raise EnvironmentSetupError(f"{name} keeps ending; see {self._logs / name}.log")
            emit("restart", part=name, exit_code=process.returncode)
            command = self._commands[name]
            self.start(name, Path(command[0]).name, *command[1:])
            self.write_state()

    def write_state(self) -> None:
        """Write addresses and process ids."""
        state = {
            "pid": os.getpid(),
            **self.addresses,
            **{name: process.pid for name, process in self._running.items()},
        }
        LocalStore(str(self.folder)).write(_STATE, (json.dumps(state, indent=1) + "\n").encode())


def _tell(folder: Path, port: int, servers: _Servers) -> None:
    """Say where to click."""
    servers.addresses["airflow_port"] = port
    servers.write_state()
    mlflow, ghn = servers.environment["MLFLOW_TRACKING_URI"], os.path.relpath(installed("ghn"))
    sys.stdout.write(
        f"""
Airflow  http://127.0.0.1:{port}/dags   (no login: everybody who has an account on this machine is an administrator)
MLflow   {mlflow}
Files    {folder} (logs of the servers in logs/, of tasks in airflow/logs/)

1. Open Airflow, choose `shard_images`, and press Trigger: the default is 1,797 digits; set image size 16.
2. Trigger `shard_deepnets`: training architectures 300, others 20, image size 16, channels 16, hidden widths 64, nodes 130.
3. `meta_train`, `evaluate` and `promote` start by themselves, one after the other (training takes some minutes).
4. Look at the champion in MLflow under Models, and at report.html below {folder}/runs/evaluate.
5. Serve it: MLFLOW_TRACKING_URI={mlflow} {ghn} s3 exec {folder}/s3 -- ghn serve --model models:/ghn2-digits@champion

Ctrl-C stops everything; the same command goes on.
"""
    )
    sys.stdout.flush()
    emit("serving", port=port, folder=str(folder))


def _is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - an address on loopback
            health = json.load(answer)
    except (OSError, ValueError):
        return False
    parts = ("metadatabase", "scheduler", "dag_processor", "triggerer")
    return all(health.get(part, {}).get("status") == "healthy" for part in parts)


def _members(session: int) -> list[int]:
    """Return the processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(entry.name))
    return found
