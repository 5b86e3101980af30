"""Move the alias ``champion``: to a candidate that is better beyond noise, or back to the champion before."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ghn.errors import InputError
from pipelines.comparison import Difference, Evaluation, compare, is_improvement, read_evaluation
from pipelines.evaluate import DEFAULT_SPLITS, evaluation_artifact, registry_errors
from pipelines.progress import emit
from pipelines.register import CANDIDATE

CHAMPION = "champion"
_BEFORE_TAG = "ghn.champion_before"
_ROLLED_BACK_TAG = "ghn.rolled_back"
_LONGEST_DESCRIPTION = 5000  # in registries on PostgreSQL and MySQL


def promote(
    name: str,
    *,
    tracking_uri: str,
    evaluation: Path | None = None,
    champion_evaluation: Path | None = None,
    splits: Sequence[str] = DEFAULT_SPLITS,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Make the candidate champion if it is better on ``val`` and worse on no other split, both beyond noise.

    The first champion has to be better than random initialization.

    Args:
        name: registered model; its alias ``candidate`` is looked at.
        tracking_uri: of MLflow.
        evaluation: JSON file of ``ghn evaluate`` for the candidate; by default what that command stored with the version.
        champion_evaluation: the same for the champion.
        splits: that must have been evaluated.
        dry_run: decide, but write nothing to the registry.

    Returns:
        ``name``, ``version``, ``champion`` (version before, or ``None``), ``promoted`` and ``reasons``, which are also written to
        the version's description.

    Raises:
        InputError: if there is no candidate, it was rolled back before, or the evaluations can not be compared.
        DataError: if an evaluation is broken or incomplete.
        StorageError: if the registry can not be used.

    """
    with _registry(tracking_uri) as client:
        candidate, champion = (_find(client, name, alias) for alias in (CANDIDATE, CHAMPION))
        if candidate is None:
            raise InputError(f"{name} has no version with the alias {CANDIDATE}; register one with `ghn register`")
        result = {"name": name, "version": int(candidate.version), "champion": champion and int(champion.version)}
        if champion is not None and champion.version == candidate.version:
            return result | {"promoted": False, "reasons": ["it is the champion already"]}
        if _ROLLED_BACK_TAG in candidate.tags:
            raise InputError(
                f"{name} version {candidate.version} was rolled back on {candidate.tags[_ROLLED_BACK_TAG]}; "
                f"register another candidate, or remove the tag {_ROLLED_BACK_TAG} from the version"
            )
        mine = _evaluation(client, candidate, evaluation)
        others = _evaluation(client, champion, champion_evaluation) if champion is not None else None
        differences = compare(mine, others, splits)
        promoted = is_improvement(differences)
        result |= {"promoted": promoted, "reasons": [str(item) for item in differences]}
        if not dry_run:
            if promoted:
                client.set_model_version_tag(name, candidate.version, _BEFORE_TAG, champion.version if champion else "")
                client.set_registered_model_alias(name, CHAMPION, candidate.version)
            _write_reasons(client, candidate, _summary(promoted, champion, differences))
    emit("promotion", dry_run=dry_run, **result)
    return result


def rollback(name: str, *, tracking_uri: str, reason: str) -> dict[str, Any]:
    """Make the champion before the present one champion again; the present one is not promoted a second time.

    Args:
        name: registered model.
        tracking_uri: of MLflow.
        reason: written to the description of the version that is left.

    Returns:
        ``name``, ``version`` (champion now) and ``left`` (champion before).

    Raises:
        InputError: if there is no champion, or none before it.
        StorageError: if the registry can not be used.

    """
    with _registry(tracking_uri) as client:
        champion = _find(client, name, CHAMPION)
        if champion is None:
            raise InputError(f"{name} has no champion to roll back")
        before = _champion_before(client, champion)
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        client.set_model_version_tag(name, champion.version, _ROLLED_BACK_TAG, today)
        client.set_registered_model_alias(name, CHAMPION, before)
        _write_reasons(client, champion, f"Rolled back to version {before} on {today}: {reason}")
    result = {"name": name, "version": int(before), "left": int(champion.version)}
    emit("rollback", reason=reason, **result)
    return result


@contextlib.contextmanager
def _registry(tracking_uri: str) -> Iterator[Any]:
    """Give a client of the registry."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow

    with registry_errors(f"the registry {tracking_uri}"):
        mlflow.set_tracking_uri(tracking_uri)
        yield mlflow.MlflowClient()


def _champion_before(client: Any, champion: Any) -> str:
    """Return the version that was champion before, and was not rolled back itself."""
    version, seen = champion, {champion.version}
    while before := version.tags.get(_BEFORE_TAG):
        version = client.get_model_version(champion.name, before)
        if version.version in seen:
            break
        seen.add(version.version)
        if _ROLLED_BACK_TAG not in version.tags:
            return before
    raise InputError(f"{champion.name} version {champion.version} has no champion before it that was not rolled back")


def _find(client: Any, name: str, alias: str) -> Any:
    """Return the version with an alias, ``None`` if there is none."""
    from mlflow.exceptions import MlflowException

    try:
        version = client.get_registered_model(name).aliases.get(alias)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise InputError(f"there is no registered model {name}; register one with `ghn register`") from error
        raise
    return None if version is None else client.get_model_version(name, version)


def _evaluation(client: Any, version: Any, file: Path | None) -> Evaluation:
    """Return a version's evaluation, from a file or as ``ghn evaluate`` stored it with the version's run."""
    label = f"{version.name} version {version.version}"
    place = str(file or f"evaluation of {label}")
    try:
        content = json.loads(file.read_text() if file else _stored(client, version))
    except OSError as error:
        raise InputError(
            f"can not read {place}: {error}; run `ghn evaluate --model models:/{version.name}/{version.version}`"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError):
        content = None
    found = read_evaluation(content, place)
    model = found.model
    if (model.name, model.version, model.run_id) != (version.name, int(version.version), version.run_id):
        raise InputError(
            f"{place} is of {found.label} (run {model.run_id}), not of {label} (run {version.run_id}); "
            "run `ghn evaluate` for that one"
        )
    return found


def _stored(client: Any, version: Any) -> str:
    import mlflow

    path = evaluation_artifact(version.name, version.version)
    with registry_errors(f"{path} of run {version.run_id}"):
        if path not in {item.path for item in client.list_artifacts(version.run_id, str(Path(path).parent))}:
            raise InputError(
                f"{version.name} version {version.version} has no evaluation; "
                f"run `ghn evaluate --model models:/{version.name}/{version.version}`"
            )
        text: str = mlflow.artifacts.load_text(f"runs:/{version.run_id}/{path}")
    return text


def _summary(promoted: bool, champion: Any, differences: Sequence[Difference]) -> str:
    other = f"version {champion.version}" if champion else "random initialization"
    head = f"{'Promoted' if promoted else 'Not promoted'}: against {other},"
    return "\n".join([head, *(f"- {item}" for item in differences)])


def _write_reasons(client: Any, version: Any, text: str) -> None:
    """Add to a version's description, below what it says already; the oldest text goes if it gets too long."""
    known = client.get_model_version(version.name, version.version).description
    whole = f"{known}\n\n{text}" if known else text
    client.update_model_version(version.name, version.version, description=whole[-_LONGEST_DESCRIPTION:])
