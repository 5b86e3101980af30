"""What a run folder holds: the names of its files, the metrics, and which of MLflow's runs it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ghn.errors import StorageError
from pipelines.storage import LocalStore, Store, open_store

METRICS_NAME = "metrics.jsonl"
RECIPE_NAME = "recipe.toml"
MODEL_NAME = "model"
AVERAGE_NAME = "model-average"
TRACKING_NAME = "mlflow.json"
_SEGMENTS = "metrics"


def checkpoint_store(run: Path, store: str | None) -> Store:
    """Return where a run keeps checkpoints and exported models: the given store, or the run folder."""
    return open_store(store or str(run))


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
        """Add a row; raises :class:`StorageError` where the disk refuses."""
        line = json.dumps(row) + "\n"
        if self._store is not None:
            self._rows[row["step"]] = line
        try:
            with (self._run / METRICS_NAME).open("a") as stream:
                stream.write(line)
        except OSError as error:
            raise StorageError(
                f"can not write {self._run / METRICS_NAME}: {error.strerror}; free some space"
            ) from error

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


def tracked_run(run: Path) -> str | None:
    """Return MLflow's run of a run folder, ``None`` if training was not tracked."""
    try:
        found: str = json.loads((run / TRACKING_NAME).read_text())["run_id"]
    except (OSError, ValueError, KeyError):
        return None
    return found
