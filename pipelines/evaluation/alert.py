"""Look at what is stored of candidate and champion, and fail, with the numbers, if somebody should look, too."""

from __future__ import annotations

import datetime
from typing import Any

from ghn.errors import AlertError, GHNError
from pipelines.evaluation.comparison import compare
from pipelines.evaluation.stored import EVALUATED_AT_TAG, stored_evaluation
from pipelines.progress import emit
from pipelines.registry import CANDIDATE, CHAMPION, find_version, open_registry


def alert(name: str, *, tracking_uri: str, max_age_hours: float) -> list[str]:
    """Check the evaluations of candidate and champion.

    Args:
        name: registered model.
        tracking_uri: of MLflow.
        max_age_hours: how old the newest evaluation of either may be.

    Returns:
        What was checked, in words.

    Raises:
        AlertError: if the candidate is worse than the champion on any split, or a version is worse than it was in its
            evaluation before (both beyond noise), or an evaluation is missing or too old; the message has all numbers.
        InputError: if there is no such model.
        StorageError: if the registry can not be used.

    """
    alarms: list[str] = []
    fine: list[str] = []
    with open_registry(tracking_uri) as client:
        versions = {alias: find_version(client, name, alias) for alias in (CANDIDATE, CHAMPION)}
        found = {alias: version for alias, version in versions.items() if version is not None}
        if not found:
            alarms.append(f"{name} has neither candidate nor champion")
        evaluations = {}
        for alias, version in found.items():
            label = f"{alias} (version {version.version})"
            (fine if (age := _age_hours(version)) is not None and age <= max_age_hours else alarms).append(
                f"{label}: never evaluated"
                if age is None
                else f"{label}: evaluated {age:.1f} hours ago, limit {max_age_hours:g}"
            )
            try:
                evaluations[alias] = stored_evaluation(client, version)
                before = (evaluations[alias].model_extra or {}).get("previous") or {}
                for item in before.get("differences", []):
                    (alarms if item["verdict"] == "worse" else fine).append(
                        f"{label} against itself before: {item['text']}"
                    )
            except GHNError as error:
                alarms.append(f"{label}: {error}")
        if len(evaluations) == 2 and found[CANDIDATE].version != found[CHAMPION].version:
            label = (
                f"candidate (version {found[CANDIDATE].version}) against champion (version {found[CHAMPION].version})"
            )
            try:
                for difference in compare(evaluations[CANDIDATE], evaluations[CHAMPION], ()):
                    (alarms if difference.verdict == "worse" else fine).append(f"{label}: {difference}")
            except GHNError as error:
                alarms.append(f"{label}: {error}")
    emit("alert", name=name, alarms=alarms, fine=fine)
    if alarms:
        raise AlertError(f"{name}: " + "; ".join(alarms))
    return fine


def _age_hours(version: Any) -> float | None:
    text = version.tags.get(EVALUATED_AT_TAG)
    if text is None:
        return None
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(text)
    return age.total_seconds() / 3600
