"""A running Airflow as its users see it: through its REST API."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.local.airflow_server import read_state
from pipelines.ports import free_port
from tests.command_line import GHN_COMMAND

_FINAL = ("success", "failed")


class Airflow:
    """An installation in a folder, started with `ghn airflow`, or another one that asks for a token."""

    def __init__(self, folder: Path, port: int, token: str | None = None) -> None:
        self.folder, self.port, self.token = folder, port, token

    def pid(self, part: str) -> int:
        return read_state(self.folder)[part]

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/v2{path}",
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json", **({"Authorization": f"Bearer {self.token}"} if self.token else {})},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, text = answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read().decode()
        try:
            return status, json.loads(text)
        except json.JSONDecodeError:
            return status, text

    def get(self, path: str) -> Any:
        status, content = self.call("GET", path)
        assert status == 200, content
        return content

    def trigger(self, dag: str, **params: Any) -> str:
        status, run = self.call("POST", f"/dags/{dag}/dagRuns", {"logical_date": None, "conf": params})
        assert status == 200, run
        return str(run["dag_run_id"])

    def runs(self, dag: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get(f"/dags/{dag}/dagRuns?order_by=run_after")["dag_runs"]
        return found

    def tasks(self, dag: str, run: str) -> list[dict[str, Any]]:
        path = f"/dags/{dag}/dagRuns/{urllib.parse.quote(run, safe='')}/taskInstances"
        found: list[dict[str, Any]] = self.get(path)["task_instances"]
        return found

    def task(self, dag: str, run: str, task: str) -> dict[str, Any]:
        return next(item for item in self.tasks(dag, run) if item["task_id"] == task)

    def set_task(self, dag: str, run: str, task: str, state: str) -> None:
        path = f"/dags/{dag}/dagRuns/{urllib.parse.quote(run, safe='')}/taskInstances/{task}"
        status, content = self.call("PATCH", path, {"new_state": state})
        assert status == 200, content

    def clear(self, dag: str, run: str, task: str) -> None:
        body = {
            "dry_run": False,
            "dag_run_id": run,
            "task_ids": [task],
            "only_failed": False,
            "include_downstream": True,
        }
        status, content = self.call("POST", f"/dags/{dag}/clearTaskInstances", {**body, "reset_dag_runs": True})
        assert status == 200, content

    def pause(self, dag: str, paused: bool) -> None:
        assert self.call("PATCH", f"/dags/{dag}", {"is_paused": paused})[0] == 200

    def wait(self, dag: str, run: str, timeout_s: float = 300) -> dict[str, Any]:
        """Wait for a run's end; returns its tasks by name and map index."""
        quoted = urllib.parse.quote(run, safe="")
        found = until(
            lambda: (r := self.get(f"/dags/{dag}/dagRuns/{quoted}"))["state"] in _FINAL and r, timeout_s, f"{dag} {run}"
        )
        tasks = {(t["task_id"], t["map_index"]): t for t in self.tasks(dag, run)}
        return {"state": found["state"], "tasks": tasks}

    def succeed(self, dag: str, run: str, timeout_s: float = 300) -> dict[str, Any]:
        """Wait for a run's end, which must be a good one; a failed task's log is in the error."""
        end = self.wait(dag, run, timeout_s)
        failed = [task for task in end["tasks"].values() if task["state"] == "failed"]
        logs = "\n".join(
            f"{task['task_id']}: …{self.log(dag, run, task['task_id'], task['try_number'], task['map_index'])[-3000:]}"
            for task in failed
        )
        assert end["state"] == "success", f"{dag} {run}: {end['state']}\n{logs}"
        return end

    def log(self, dag: str, run: str, task: str, number: int = 1, mapped: int = -1) -> str:
        quoted = urllib.parse.quote(run, safe="")
        path = f"/dags/{dag}/dagRuns/{quoted}/taskInstances/{task}/logs/{number}?map_index={mapped}"
        return json.dumps(self.get(path))


def until(condition: Callable[[], Any], timeout_s: float, what: str) -> Any:
    """Wait until a condition holds; returns its value."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.5)
    return value


@contextlib.contextmanager
def running_airflow(folder: Path, environment: Mapping[str, str], *, database: str | None = None) -> Iterator[Airflow]:
    """Start `ghn airflow` and stop it at the end."""
    port = free_port()
    command = [GHN_COMMAND, "airflow", "--folder", str(folder), "--port", str(port)]
    command += ["--database", database] if database else []
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        ready = until(
            lambda: server.poll() is not None or "airflow_port" in read_state(folder), 240, "Airflow's servers"
        )
        assert ready and server.poll() is None, (folder / "server.log").read_text()[-3000:]
        yield Airflow(folder, port)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(server.pid, signal.SIGTERM)
        server.wait(timeout=90)
