"""`pipelines.training.tracking`: what MLflow refuses costs neither the metrics nor a second run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from pipelines.recipe import load_recipe
from pipelines.training.run_folder import tracked_run
from pipelines.training.tracking import Tracker

MANIFESTS = {"images": "a" * 64, "deepnets": "b" * 64}


def test_a_server_that_refuses_inputs_still_gets_all_metrics_in_one_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: Any, **more: Any) -> None:
        raise MlflowException("no such endpoint")

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "refusing")
    monkeypatch.setattr(mlflow.MlflowClient, "log_inputs", refuse)
    with Tracker(load_recipe("smoke"), MANIFESTS, tmp_path, None, active=True) as tracker:
        for step in (1, 2):
            tracker.log({"step": step, "loss": 2.0 / step})
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("refusing").experiment_id])
    assert run.info.run_id == tracker.run_id == tracked_run(tmp_path) and run.info.status == "FINISHED"
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss")] == [(1, 2.0), (2, 1.0)]
    assert "tracking_failed" in capsys.readouterr().err
