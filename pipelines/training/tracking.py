"""Metrics to MLflow while training goes on: one run for all ranks and all sessions; a registry that is away stops nothing."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import queue
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ghn.errors import EnvironmentSetupError, first_line
from pipelines.lineage import tags
from pipelines.progress import emit
from pipelines.recipe import Recipe
from pipelines.storage import LocalStore
from pipelines.training.mlflow_run import describe_run, open_run, send_rows
from pipelines.training.run_folder import TRACKING_NAME

EXPERIMENT_VARIABLE = "MLFLOW_EXPERIMENT_NAME"
_ARTIFACTS_VARIABLE = "GHN_ARTIFACTS"
DEFAULT_EXPERIMENT = "ghn"
_USUAL_NAME = "train"  # of run folders: the one above says more
_FLUSH_S = 5.0
_LAST_FLUSH_S = 30.0
_MOST_WAITING = 100_000


class Tracker:
    """Sends metrics from a thread. Without ``MLFLOW_TRACKING_URI`` (or on other ranks than 0) it does nothing.

    Args:
        recipe: whose settings become the run's parameters.
        manifests: SHA-256 of the shard sets' manifests.
        run: the run folder; ``mlflow.json`` there names MLflow's run.
        known: MLflow's run of an earlier session.
        active: whether this rank is the one that reports.

    Attributes:
        run_id: MLflow's run, once it is known.

    """

    def __init__(
        self, recipe: Recipe, manifests: Mapping[str, str], run: Path, known: str | None, *, active: bool
    ) -> None:
        self._uri = os.environ.get("MLFLOW_TRACKING_URI") if active else None
        self._recipe, self._manifests, self._run = recipe, manifests, run
        self.run_id = known
        self._waiting: queue.Queue[dict[str, Any]] = queue.Queue(_MOST_WAITING)
        self._ended = threading.Event()
        self._failed = False
        self._thread: threading.Thread | None = None
        self._system: Any = None

    def __enter__(self) -> Tracker:
        if self._uri:
            self._attempt(self._open)
            self._attempt(self._watch_system)
            self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self._thread is not None:
            self._ended.set()
            self._thread.join(_LAST_FLUSH_S)
            if self._system is not None:
                self._attempt(self._system.finish)
            self._attempt(lambda: self._close("FINISHED" if kind is None else "FAILED"))

    def log(self, row: dict[str, Any]) -> None:
        """Send the numbers of a row, at its ``step``; returns at once."""
        if self._thread is not None:
            with contextlib.suppress(queue.Full):
                self._waiting.put_nowait({**row, "time": int(time.time() * 1000)})

    def _open(self) -> None:
        """Find the run of an earlier session, or make one."""
        import mlflow

        client, new = mlflow.MlflowClient(self._uri), self.run_id is None
        if self.run_id is None:
            folder = self._run.parent if self._run.name == _USUAL_NAME else self._run
            self.run_id = open_run(
                client,
                os.environ.get(EXPERIMENT_VARIABLE, DEFAULT_EXPERIMENT),
                os.environ.get(_ARTIFACTS_VARIABLE),
                f"{self._recipe.name}-{folder.name}",
                tags(self._recipe, self._manifests),
            )
        facts = json.dumps({"run_id": self.run_id}) + "\n"
        LocalStore(str(self._run)).write(TRACKING_NAME, facts.encode())
        client.update_run(self.run_id, status="RUNNING")
        if new:
            describe_run(client, self.run_id, self._recipe, self._manifests)

    def _watch_system(self) -> None:
        """Send how busy this host's processors, memory, disks, network and GPUs are, as ``system/...``."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
        if self.run_id is not None:
            self._system = SystemMetricsMonitor(self.run_id, resume_logging=True, tracking_uri=self._uri)
            self._system.start()

    def _close(self, status: str) -> None:
        import mlflow

        if self.run_id is not None:
            mlflow.MlflowClient(self._uri).set_terminated(self.run_id, status=status)

    def _work(self) -> None:
        rows: list[dict[str, Any]] = []
        while True:
            ended = self._ended.wait(_FLUSH_S)
            while not self._waiting.empty() and len(rows) < _MOST_WAITING:
                rows.append(self._waiting.get_nowait())
            if self._attempt(functools.partial(self._send, rows)):
                rows = []
            if ended:
                return

    def _send(self, rows: list[dict[str, Any]]) -> None:
        import mlflow

        if self.run_id is None:
            self._open()
        send_rows(mlflow.MlflowClient(self._uri), str(self.run_id), rows)

    def _attempt(self, action: Any) -> bool:
        """Do something with MLflow; whatever goes wrong there is reported once, until it works again."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        try:
            action()
        except Exception as error:
            if not self._failed:
                emit("tracking_failed", uri=self._uri, reason=first_line(error)[:300])
            self._failed = True
            return False
        self._failed = False
        return True


def check_tracking(uri: str) -> None:
    """Raise :class:`EnvironmentSetupError` if MLflow can not be used there."""
    import mlflow

    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    try:
        mlflow.MlflowClient(uri).search_experiments(max_results=1)
    except Exception as error:
        reason = first_line(error)[:300]
        raise EnvironmentSetupError(f"can not use MLflow at {uri}: {reason}; check MLFLOW_TRACKING_URI") from error
