"""Register a trained model in MLflow: one run with parameters, metrics and the model, one version, one alias."""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ghn
import pipelines
from ghn.checkpoint import CONFIG_NAME, load_checkpoint, read_metadata, weights_digest
from ghn.errors import InputError
from pipelines.lineage import tags
from pipelines.progress import emit
from pipelines.recipe import Recipe, load_recipe
from pipelines.registry import CANDIDATE, open_registry
from pipelines.training.mlflow_run import describe_run, open_run, send_rows
from pipelines.training.run_folder import AVERAGE_NAME, METRICS_NAME, MODEL_NAME, RECIPE_NAME, read_metrics, tracked_run

_WEIGHTS_TAG = "ghn.weights_sha256"
_MAX_CURVE_POINTS = 500
_SERVED_WITH = (
    *("torch", "torchvision", "numpy", "numba", "safetensors", "mlflow-skinny", "pandas"),
    *("pydantic", "prometheus-client", "boto3", "tenacity"),
)
"""What the logged model needs, and no more."""


def register(
    run: Path,
    *,
    name: str,
    tracking_uri: str,
    artifacts: str | None,
    experiment: str,
    alias: str = CANDIDATE,
    average: bool = False,
) -> dict[str, Any]:
    """Register the finished model of a run folder as a new version of ``name`` and point ``alias`` at it.

    A model whose weights are registered already gets no second version; its alias is set again.

    Args:
        run: folder of a finished ``ghn train``.
        name: registered model, e.g. ``ghn2-digits``.
        tracking_uri: of MLflow, e.g. ``sqlite:///runs/mlflow.db``.
        artifacts: root for artifacts of a new experiment, e.g. ``s3://bucket/mlflow``; ``None`` leaves it to MLflow.
        experiment: name of the MLflow experiment.
        alias: moved to the version.
        average: the model with averaged weights (``training.ema``) instead of the last ones.

    Returns:
        ``name``, ``version``, ``run_id``, ``model_uri``.

    Raises:
        InputError: if the run has not finished training.
        StorageError: if the registry or the artifact store can not be used.

    """
    model = _finished_model(run, AVERAGE_NAME if average else MODEL_NAME)
    digest, recipe = weights_digest(model), load_recipe(str(run / RECIPE_NAME))

    with open_registry(tracking_uri) as client:
        import mlflow

        version = next(
            iter(client.search_model_versions(f"name='{_quoted(name)}' and tags.`{_WEIGHTS_TAG}`='{digest}'")), None
        )
        if version is None:
            manifests = read_metadata(model)["manifests"]
            lineage = {_WEIGHTS_TAG: digest, **tags(recipe, manifests)}
            known = _known_run(client, run)
            run_id = known or open_run(client, experiment, artifacts, f"{recipe.name}-{digest[:8]}", lineage)
            _log_run(client, run_id, run, digest, None if known else (recipe, manifests))
            version = mlflow.register_model(_log_model(run_id, model), name, tags=lineage)
        client.set_registered_model_alias(name, alias, version.version)
    result = {
        "name": name,
        "version": int(version.version),
        "run_id": version.run_id,
        "model_uri": f"models:/{name}@{alias}",
    }
    emit("registered", **result)
    return result


def _finished_model(run: Path, name: str) -> Path:
    """Return a run's model, which was loaded once to prove that it is whole."""
    model = run / name
    if not ((model / CONFIG_NAME).is_file() and (run / RECIPE_NAME).is_file()):
        rows = read_metrics(run)
        at = f"stopped at step {rows[-1]['step']}" if rows else "holds no training"
        if (run / MODEL_NAME / CONFIG_NAME).is_file():
            at = "was trained without training.ema"
        raise InputError(f"{run} {at}: there is no finished {name} to register; see `ghn train --run {run}`")
    load_checkpoint(model)
    return model


def _quoted(text: str) -> str:
    if "'" in text:
        raise InputError(f"registered model name {text!r} contains a quote; choose another name")
    return text


def _log_run(client: Any, run_id: str, run: Path, digest: str, new: tuple[Recipe, Mapping[str, str]] | None) -> None:
    """Complete the run to which training sent its metrics; a ``new`` one, of a recipe and manifests, gets everything."""
    import mlflow

    with mlflow.start_run(run_id=run_id):  # it is closed as failed if something goes wrong
        if new is not None:
            describe_run(client, run_id, *new)
            rows, written = read_metrics(run), int((run / METRICS_NAME).stat().st_mtime * 1000)
            stride = max(1, len(rows) // _MAX_CURVE_POINTS)
            send_rows(client, run_id, ({**row, "time": written} for row in rows[::stride]))
        mlflow.set_tag(_WEIGHTS_TAG, digest)
        mlflow.log_artifact(str(run / RECIPE_NAME))
        mlflow.log_artifact(str(run / METRICS_NAME))


def _known_run(client: Any, run: Path) -> str | None:
    """Return the run to which training sent its metrics, if this registry has it and it was not deleted."""
    from mlflow.exceptions import MlflowException

    known = tracked_run(run)
    try:
        return known if known and client.get_run(known).info.lifecycle_stage == "active" else None
    except MlflowException:  # another registry
        return None


def _log_model(run_id: str, checkpoint: Path) -> str:
    """Log the pyfunc model with its code and weights to the run; return its address."""
    import mlflow

    with mlflow.start_run(run_id=run_id), warnings.catch_warnings():
        # specifications and graphs are checked by the model itself
        warnings.filterwarnings("ignore", "Any type hint is inferred as AnyType")
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(
                Path(pipelines.__file__).parent / "serving" / "model.py"
            ),  # its type hints are the signature
            artifacts={"checkpoint": str(checkpoint)},
            code_paths=[str(Path(package).parent) for package in (ghn.__file__, pipelines.__file__)],
            pip_requirements=[f"{package}=={_installed(package)}" for package in _SERVED_WITH],
        )
    uri: str = info.model_uri
    return uri


def _installed(package: str) -> str:
    return importlib.metadata.version(package).partition("+")[0]  # a local build label is not installable elsewhere
