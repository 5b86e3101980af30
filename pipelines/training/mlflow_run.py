"""MLflow's run of a training: opened, described by parameters and shard sets, and filled with rows of metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pipelines.lineage import inputs
from pipelines.recipe import Recipe

_AT_ONCE = 1000  # metrics of one request, at most


def open_run(client: Any, experiment: str, artifacts: str | None, name: str, tags: Mapping[str, str]) -> str:
    """Make a run, and its experiment if that is new; return the run's id.

    Args:
        client: an ``MlflowClient``.
        experiment: name of the experiment.
        artifacts: root of a new experiment's artifacts; ``None`` leaves it to MLflow.
        name: of the run.
        tags: of the run.

    """
    found = client.get_experiment_by_name(experiment)
    number = found.experiment_id if found else client.create_experiment(experiment, artifacts)
    run_id: str = client.create_run(number, run_name=name, tags=dict(tags)).info.run_id
    return run_id


def describe_run(client: Any, run_id: str, recipe: Recipe, manifests: Mapping[str, str]) -> None:
    """Log the recipe's settings as parameters, and the shard sets (SHA-256 of their manifests) as inputs."""
    from mlflow.entities import Param

    client.log_inputs(run_id, inputs(recipe, manifests))
    params = [Param(name, str(value)) for name, value in _flatten(recipe.model_dump())]
    client.log_batch(run_id, params=params)


def send_rows(client: Any, run_id: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Send the numbers of rows, each at its ``step`` and its ``time`` (milliseconds)."""
    from mlflow.entities import Metric

    points = [
        Metric(key, float(value), row["time"], row["step"])
        for row in rows
        for key, value in row.items()
        if key not in ("step", "time") and isinstance(value, (int, float)) and math.isfinite(value)
    ]
    for start in range(0, len(points), _AT_ONCE):
        client.log_batch(run_id, metrics=points[start : start + _AT_ONCE])


def _flatten(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of nested settings."""
    for key, value in data.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
