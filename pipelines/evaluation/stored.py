"""Evaluations in the registry: an artifact of the version's run, with a summary as metrics, and when it was made as a tag."""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ghn.errors import GHNError, InputError
from ghn.evaluation import PREDICTED
from pipelines.evaluation.comparison import Evaluation, compare, read_evaluation
from pipelines.registry import CHAMPION, Model, find_version, open_registry, registry_errors

EVALUATED_AT_TAG = "ghn.evaluated_at"


def _evaluation_artifact(name: str, version: int | str) -> str:
    """Return where a version's evaluation lies in its run: several versions may come from one run."""
    return f"evaluations/{name}-{version}.json"


def store_evaluation(model: Model, tracking_uri: str | None, evaluation: Mapping[str, Any]) -> bool:
    """Store an evaluation with its version: the whole of it, and means, standard errors and best as metrics of the run.

    Returns:
        Whether it was stored; it is not in place of one of the same images and networks that covers more of them.

    """
    place = _evaluation_artifact(str(model.name), str(model.version))
    with open_registry(tracking_uri) as client, registry_errors(f"{place} of run {model.run_id}"):
        if _is_part_of_stored(client, model, evaluation):
            return False
        client.log_dict(model.run_id, evaluation, place)
        for split, row in evaluation["splits"].items():
            client.log_metric(model.run_id, f"eval.{split}.failed", float(row["failed"]))
            for method, metrics in row["scores"].items():
                for metric, values in metrics.items():
                    for key, value in values.items() if method == PREDICTED else [("mean", values["mean"])]:
                        client.log_metric(model.run_id, f"eval.{split}.{method}.{metric}.{key}", float(value))
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        client.set_model_version_tag(model.name, str(model.version), EVALUATED_AT_TAG, now)
    return True


def _is_part_of_stored(client: Any, model: Model, evaluation: Mapping[str, Any]) -> bool:
    try:
        stored = stored_evaluation(client, client.get_model_version(model.name, str(model.version)))
    except GHNError:
        return False  # none, or none that can be read
    images = evaluation["images"]
    if (stored.images.manifest, stored.images.split) != (images["manifest"], images["split"]):
        return False
    manifests = evaluation["architectures"]["manifests"]
    if any(stored.architectures.manifests.get(name, digest) != digest for name, digest in manifests.items()):
        return False
    mine = {(network["split"], network["index"]) for network in evaluation["networks"]}
    theirs = {(network.split, network.index) for network in stored.networks}
    fewer = (len(mine), images["count"]) != (len(theirs), stored.images.count)
    return fewer and mine <= theirs and images["count"] <= stored.images.count


def stored_evaluation(client: Any, version: Any) -> Evaluation:
    """Return what was stored with a registered version.

    Raises:
        InputError: if it was never evaluated.
        DataError: if the evaluation is broken.

    """
    import mlflow

    label, path = f"{version.name} version {version.version}", _evaluation_artifact(version.name, version.version)
    with registry_errors(f"{path} of run {version.run_id}"):
        if path not in {item.path for item in client.list_artifacts(version.run_id, str(Path(path).parent))}:
            raise InputError(
                f"{label} has no evaluation; run `ghn evaluate --model models:/{version.name}/{version.version}`"
            )
        text: str = mlflow.artifacts.load_text(f"runs:/{version.run_id}/{path}")
    return parse_evaluation(text, f"evaluation of {label}", version)


def parse_evaluation(text: str, place: str, version: Any) -> Evaluation:
    """Read an evaluation that must be of a registered version.

    Raises:
        InputError: if it is of another one.
        DataError: if it is broken.

    """
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        content = None
    found = read_evaluation(content, place)
    model = found.model
    if (model.name, model.version, model.run_id) != (version.name, int(version.version), version.run_id):
        raise InputError(
            f"{place} is of {found.label} (run {model.run_id}), not of {version.name} version {version.version} "
            f"(run {version.run_id}); run `ghn evaluate` for that one"
        )
    return found


def against_stored(model: Model, tracking_uri: str | None, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Compare with what is stored of the champion and of this version; say why where that can not be done."""
    if model.name is None:
        return {"champion": None, "previous": None}
    with open_registry(tracking_uri) as client:
        champion = find_version(client, model.name, CHAMPION)
        this = client.get_model_version(model.name, str(model.version))
        other = None if champion is None or champion.version == this.version else champion
        previous = this if EVALUATED_AT_TAG in this.tags else None
        return {
            "champion": other and _against(client, other, evaluation),
            "previous": previous and _against_itself(client, previous, evaluation),
        }


def _against_itself(client: Any, version: Any, evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
    """Compare with the evaluation of before; where that is this one, not quite finished, with the one that it looked at."""
    with contextlib.suppress(GHNError):
        stored = stored_evaluation(client, version).model_extra or {}
        if stored.get("results") == evaluation["results"]:
            return stored.get("previous")
    return _against(client, version, evaluation)


def _against(client: Any, version: Any, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {"version": int(version.version)}
    try:
        mine = read_evaluation(evaluation, "this evaluation")
        differences = compare(mine, stored_evaluation(client, version), ())
    except GHNError as error:
        return {**result, "not_compared": str(error)}
    return {**result, "differences": [{**vars(item), "text": str(item)} for item in differences]}
