"""Move the alias ``champion``: to a candidate that is better beyond noise, or back to the champion before."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ghn.errors import InputError
from ghn.space import EVALUATED_SPLITS
from pipelines.evaluation.comparison import Difference, Evaluation, compare, is_improvement
from pipelines.evaluation.stored import parse_evaluation, stored_evaluation
from pipelines.progress import emit
from pipelines.registry import CANDIDATE, CHAMPION, find_version, open_registry

_BEFORE_TAG = "ghn.champion_before"
_ROLLED_BACK_TAG = "ghn.rolled_back"
_LONGEST_DESCRIPTION = 5000  # in registries on PostgreSQL and MySQL


def promote(
    name: str,
    *,
    tracking_uri: str,
    evaluation: Path | None = None,
    champion_evaluation: Path | None = None,
    splits: Sequence[str] = EVALUATED_SPLITS,
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
        InputError: if there is no candidate, or the evaluations can not be compared.
        DataError: if an evaluation is broken or incomplete.
        StorageError: if the registry can not be used.

    """
    with open_registry(tracking_uri) as client:
        candidate, champion = (find_version(client, name, alias) for alias in (CANDIDATE, CHAMPION))
        if candidate is None:
            raise InputError(f"{name} has no version with the alias {CANDIDATE}; register one with `ghn register`")
        result = {"name": name, "version": int(candidate.version), "champion": champion and int(champion.version)}
        if champion is not None and champion.version == candidate.version:
            return result | {"promoted": False, "reasons": ["it is the champion already"]}
        if when := candidate.tags.get(_ROLLED_BACK_TAG):
            reason = f"it was rolled back on {when}; register another candidate, or remove the tag {_ROLLED_BACK_TAG}"
            return result | {"promoted": False, "reasons": [reason]}
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
    with open_registry(tracking_uri) as client:
        champion = find_version(client, name, CHAMPION)
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


def _evaluation(client: Any, version: Any, file: Path | None) -> Evaluation:
    """Return a version's evaluation, from a file or as ``ghn evaluate`` stored it with the version's run."""
    if file is None:
        return stored_evaluation(client, version)
    try:
        text = file.read_text(errors="replace")
    except OSError as error:
        raise InputError(
            f"can not read {file}: {error}; run `ghn evaluate --model models:/{version.name}/{version.version}`"
        ) from error
    return parse_evaluation(text, str(file), version)


def _summary(promoted: bool, champion: Any, differences: Sequence[Difference]) -> str:
    other = f"version {champion.version}" if champion else "random initialization"
    head = f"{'Promoted' if promoted else 'Not promoted'}: against {other},"
    return "\n".join([head, *(f"- {item}" for item in differences)])


def _write_reasons(client: Any, version: Any, text: str) -> None:
    """Add to a version's description, below what it says already; the oldest text goes if it gets too long."""
    known = client.get_model_version(version.name, version.version).description
    if known and known.endswith(text):  # a nightly evaluation finds the same again
        return
    whole = f"{known}\n\n{text}" if known else text
    client.update_model_version(version.name, version.version, description=whole[-_LONGEST_DESCRIPTION:])
