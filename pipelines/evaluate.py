"""Evaluate a registered model (or a checkpoint) on splits of unseen architectures and on test images."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ghn import GHN, load_checkpoint
from ghn.checkpoint import read_metadata
from ghn.errors import GHNError, InputError, StorageError
from ghn.evaluation import BATCHNORM_POLICY, NetworkResult, evaluate_networks, summarize
from pipelines.progress import Progress, emit
from pipelines.settings import ImageSettings
from pipelines.shards.manifest import read_manifest
from pipelines.storage import LocalStore, open_store
from pipelines.training.data import read_architectures, read_image_batches

SCHEMA_VERSION = 1
DEFAULT_SPLITS = ("val", "test", "wide", "deep", "dense", "bnfree", "predefined")


def evaluate(
    model: str,
    *,
    images: str,
    deepnets: str,
    splits: Sequence[str],
    out: Path,
    tracking_uri: str | None = None,
    networks: int | None = None,
    image_limit: int | None = None,
    image_split: str = "test",
    seed: int = 0,
) -> dict[str, Any]:
    """Evaluate predicted parameters and the random-initialization baseline; write and return the evaluation.

    Args:
        model: ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION`` in the registry, or a checkpoint's path.
        images: root of an image shard set.
        deepnets: root of the architecture shard sets.
        splits: which of them.
        out: JSON file to write.
        tracking_uri: of MLflow, for registered models; the evaluation goes to the version's run, too.
        networks: at most so many networks of each split, the first ones.
        image_limit: at most so many images, the first ones in stored order.
        image_split: ``test`` (or ``val``, to choose between models).
        seed: of the random initializations.

    """
    hypernet, facts, version = _load(model, tracking_uri)
    settings = ImageSettings.model_validate(facts.get("recipe", {}).get("images", {}))
    batches, classes = read_image_batches(images, image_split, settings, batch=64, limit=image_limit)
    if classes > hypernet.config.num_classes:
        raise InputError(
            f"{images} has {classes} classes but the model {model} predicts for {hypernet.config.num_classes}; "
            "evaluate it on images with as many classes at most"
        )
    chosen = {split: read_architectures(deepnets, split)[:networks] for split in splits}
    for split, architectures in chosen.items():
        if (size := architectures[0].spec.image_size) != settings.size:
            raise InputError(f"{deepnets}/{split} was made for {size}-pixel images, the model for {settings.size}")
    results: list[NetworkResult] = []
    with Progress("evaluate", sum(map(len, chosen.values())), unit="network") as progress:
        for architectures in chosen.values():
            results += evaluate_networks(
                hypernet,
                architectures,
                batches,
                seed=seed,
                on_result=lambda result: progress.update(split=result.split, accuracy=round(result.accuracy, 1)),
            )
    evaluation: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "model": {"uri": model, **version},
        "metric": "top-1 accuracy in percent",
        "chance": 100.0 / hypernet.config.num_classes,
        "batchnorm": BATCHNORM_POLICY,
        "images": {
            "url": images,
            "manifest": _digest(images, image_split),
            "split": image_split,
            "count": sum(len(labels) for _, labels in batches),
            "size": settings.size,
            "classes": classes,
        },
        "architectures": {
            "url": deepnets,
            "manifests": {split: _digest(deepnets, split) for split in chosen},
            "seed_of_random_initialization": seed,
        },
        "splits": {
            split: dataclasses.asdict(summarize([result for result in results if result.split == split]))
            for split in chosen
        },
        "networks": [dataclasses.asdict(result) for result in results],
    }
    LocalStore(str(out.parent)).write(out.name, (json.dumps(evaluation, indent=1) + "\n").encode())
    if version:
        _log(version, evaluation)
    emit("evaluated", out=str(out), **{split: round(row["mean"], 2) for split, row in evaluation["splits"].items()})
    return evaluation


def _load(model: str, tracking_uri: str | None) -> tuple[GHN, dict[str, Any], dict[str, Any]]:
    """Return the hypernetwork, the facts stored with it, and (for registered models) name, version and run id."""
    if not model.startswith("models:/"):
        return load_checkpoint(model), read_metadata(model), {}
    import mlflow
    from mlflow.exceptions import MlflowException

    if tracking_uri:
        mlflow.set_tracking_uri(tracking_uri)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        client = mlflow.MlflowClient()
        name, at, alias = model.removeprefix("models:/").partition("@")
        if at:
            version = client.get_model_version_by_alias(name, alias)
        else:
            name, _, number = name.rpartition("/")
            version = client.get_model_version(name, number)
        folder = Path(mlflow.artifacts.download_artifacts(f"models:/{name}/{version.version}"))
    except MlflowException as error:
        raise InputError(
            f"can not load {model} from {tracking_uri or mlflow.get_tracking_uri()}: {error}; "
            "register one with `ghn register`, or name another version"
        ) from error
    except Exception as error:
        if type(error).__module__.startswith(("boto", "sqlalchemy")):
            raise StorageError(f"can not download {model}: {error}; check AWS_ENDPOINT_URL and the registry") from error
        raise
    checkpoint = folder / "artifacts" / "model"
    facts = {"name": name, "version": int(version.version), "run_id": version.run_id}
    return load_checkpoint(checkpoint), read_metadata(checkpoint), facts


def _digest(root: str, split: str) -> str:
    return read_manifest(open_store(f"{root}/{split}")).digest()


def evaluation_artifact(name: str, version: int | str) -> str:
    """Return where a version's evaluation lies in its run: several versions may come from one run."""
    return f"evaluations/{name}-{version}.json"


def _log(version: dict[str, Any], evaluation: dict[str, Any]) -> None:
    """Store the evaluation with the version's run, and its summary as metrics."""
    import mlflow

    client, run_id = mlflow.MlflowClient(), version["run_id"]
    with registry_errors(f"the evaluation of {version['name']} version {version['version']}"):
        client.log_dict(run_id, evaluation, evaluation_artifact(version["name"], version["version"]))
        for split, row in evaluation["splits"].items():
            for key, value in row.items():
                client.log_metric(run_id, f"eval.{split}.{key}", float(value))


@contextlib.contextmanager
def registry_errors(what: str) -> Iterator[None]:
    """Turn what MLflow and the libraries below it raise into one message."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except GHNError:
        raise
    except Exception as error:
        if not (
            isinstance(error, (MlflowException, OSError)) or type(error).__module__.startswith(("boto", "sqlalchemy"))
        ):
            raise
        raise StorageError(
            f"can not read or store {what}: {error}; check MLFLOW_TRACKING_URI, AWS_ENDPOINT_URL and credentials"
        ) from error
