"""What a run folder holds, and the training state that a run goes on from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from ghn.errors import InputError
from pipelines.settings import Recipe
from pipelines.storage import LocalStore, Store

METRICS_NAME = "metrics.jsonl"
RECIPE_NAME = "recipe.toml"
MODEL_NAME = "model"
AVERAGE_NAME = "model-average"
_SEGMENTS = "metrics"


class TrainingState(BaseModel):
    """The content of a checkpoint's ``state.json``.

    Attributes:
        step: steps that are done.
        total_steps: of the recipe.
        files: SHA-256 of each of the checkpoint's other files.
        readers: positions of the shard readers.
        recipe_digest: see :meth:`pipelines.settings.Recipe.digest`.
        manifests: SHA-256 of the shard sets' manifests.
        skipped: networks that were skipped so far.
        sessions: starts of the run so far.
        optimizer_step: updates that the optimizer did (steps in which every network was skipped are none).
        tracking_run: MLflow's run, if there is one.

    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = 2
    step: int
    total_steps: int
    files: dict[str, str] = {}
    readers: dict[str, Any]
    recipe_digest: str
    manifests: dict[str, str]
    skipped: int
    sessions: int
    optimizer_step: int
    tracking_run: str | None = None


def check_resumable(where: str, state: TrainingState, recipe: Recipe) -> None:
    """Raise :class:`InputError` if a state does not belong to this recipe."""
    if state.recipe_digest != recipe.digest():
        raise InputError(
            f"{where} was trained with another recipe (see its {RECIPE_NAME}); give the same recipe, or another --run"
        )


class MetricsLog:
    """The metrics of a run: one JSON object for each step, in ``metrics.jsonl`` of the run folder.

    Args:
        run: the run folder.
        store: where checkpoints go; if that is another place, the rows between two checkpoints are kept there too, so
            that a run that goes on with an empty folder has all its metrics.

    """

    def __init__(self, run: Path, store: Store) -> None:
        self._run = run
        self._store = None if store.root == LocalStore(str(run)).root else store
        self._rows: dict[int, str] = {}  # by step, until a checkpoint behind it is stored

    def append(self, row: dict[str, Any]) -> None:
        """Add a row."""
        line = json.dumps(row) + "\n"
        if self._store is not None:
            self._rows[row["step"]] = line
        with (self._run / METRICS_NAME).open("a") as stream:
            stream.write(line)

    def segment(self, step: int) -> tuple[str, bytes] | None:
        """Return key and content of the rows that a checkpoint at a step has to store: those since the last stored one."""
        content = "".join(self._rows.values()).encode()
        return (f"{_SEGMENTS}/step-{step:09d}.jsonl", content) if content else None

    def stored(self, step: int) -> None:
        """Note that a checkpoint at a step is stored, with its rows."""
        self._rows = {at: line for at, line in self._rows.items() if at > step}

    def go_back(self, step: int) -> None:
        """Forget the rows of steps that will be done again."""
        rows = [row for row in read_metrics(self._run) if row["step"] <= step]
        if self._store is not None and len(rows) < step:
            keys = [key for key in self._store.list(f"{_SEGMENTS}/") if key <= f"{_SEGMENTS}/step-{step:09d}.jsonl"]
            kept = (json.loads(line) for key in keys for line in self._store.read(key).splitlines())
            rows = list({row["step"]: row for row in kept}.values())
        content = "".join(json.dumps(row) + "\n" for row in rows)
        LocalStore(str(self._run)).write(METRICS_NAME, content.encode())


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
