"""Training state: what a run needs to go on after it was stopped or killed, published whole or not at all.

DeepSpeed writes its own files (weights, optimizer) into ``state/step-N``; ``state.json`` names that folder, the SHA-256
of every file in it, the step and the readers' positions. It is written last and atomically, so whatever is on disk is
either a whole state or not a state. DeepSpeed's files are pickles: they are checked before they are loaded, and only
ever read from a run's own folder.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ghn.errors import DataError, InputError
from pipelines.settings import Recipe
from pipelines.storage import LocalStore

STATE_NAME = "state.json"
STATES = "state"
METRICS_NAME = "metrics.jsonl"
RECIPE_NAME = "recipe.toml"
MODEL_NAME = "model"


class TrainingState(BaseModel):
    """The content of ``state.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = 1
    step: int
    total_steps: int
    world_size: int
    tag: str
    files: dict[str, str]
    readers: dict[str, Any]
    recipe_digest: str
    manifests: dict[str, str]
    skipped: int
    sessions: int


def read_state(run: Path) -> TrainingState | None:
    """Return the state of a run folder, ``None`` if it has none; :class:`DataError` if it is damaged."""
    file = run / STATE_NAME
    if not file.is_file():
        return None
    try:
        return TrainingState.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise DataError(
            f"{file} is damaged: {error.errors()[0]['msg']}; delete the run folder or restore it"
        ) from error


def check_resumable(run: Path, state: TrainingState, recipe: Recipe, world_size: int) -> None:
    """Raise if the state does not belong to this recipe, or any of its files is not what was written."""
    if state.recipe_digest != recipe.digest():
        raise InputError(
            f"{run} was trained with another recipe (see its {RECIPE_NAME}); give the same recipe, or another --run"
        )
    if state.world_size != world_size:
        raise InputError(
            f"{run} was trained on {state.world_size} processes, not {world_size}; set training.processes={state.world_size}"
        )
    for name, digest in state.files.items():
        file = run / STATES / state.tag / name
        if not file.is_file() or _sha256(file) != digest:
            raise DataError(f"training state {file} is missing or damaged; restore it, or start again in another --run")


def publish_state(run: Path, state: TrainingState) -> None:
    """Make a state whose DeepSpeed files are complete the run's current one, and remove the older ones."""
    LocalStore(str(run)).write(STATE_NAME, (state.model_dump_json(indent=1) + "\n").encode())
    for path in (run / STATES).iterdir():
        if path.is_file():
            path.unlink()  # conversion scripts that DeepSpeed leaves there
        elif path.name != state.tag:
            shutil.rmtree(path, ignore_errors=True)


def hash_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder."""
    return {file.relative_to(folder).as_posix(): _sha256(file) for file in sorted(folder.rglob("*")) if file.is_file()}


def truncate_metrics(run: Path, step: int) -> None:
    """Forget the metrics of steps that will be done again."""
    rows = [row for row in read_metrics(run) if row["step"] <= step]
    LocalStore(str(run)).write(METRICS_NAME, "".join(json.dumps(row) + "\n" for row in rows).encode())


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the metrics of a run, one dictionary per logged step; a last line that was cut off is dropped."""
    file = run / METRICS_NAME
    rows = []
    for line in file.read_text().splitlines() if file.is_file() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
