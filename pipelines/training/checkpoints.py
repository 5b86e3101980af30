"""Checkpoints of training: written in the background, whole or not at all, on local disk or S3, for any number of ranks.

``checkpoints/step-N/`` holds safetensors files (weights, the optimizer's moments, averaged weights) and ``state.json``, which
names their SHA-256 and is written last. Nothing in them depends on how many ranks wrote them or on the stage of ZeRO.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ghn.errors import DataError, GHNError, InputError, StorageError
from pipelines.progress import emit
from pipelines.recipe import Recipe
from pipelines.storage import Store
from pipelines.training.run_folder import RECIPE_NAME

FOLDER = "checkpoints"
STATE_NAME = "state.json"
_STATE = re.compile(rf"{FOLDER}/step-(\d{{9}})/{re.escape(STATE_NAME)}")

Tensors = Mapping[str, Mapping[str, Tensor]]
"""Tensors by file (without ``.safetensors``) and name, on the CPU."""


class TrainingState(BaseModel):
    """The content of a checkpoint's ``state.json``.

    Attributes:
        step: steps that are done.
        total_steps: of the recipe.
        files: SHA-256 of each of the checkpoint's other files.
        readers: positions of the shard readers.
        recipe_digest: see :meth:`pipelines.recipe.Recipe.digest`.
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


@dataclass(frozen=True, kw_only=True)
class Retention:
    """Which checkpoints stay: the ``last`` newest (>= 1), and those at multiples of ``every`` steps, if that is set."""

    last: int = 1
    every: int | None = None


def folder(step: int) -> str:
    """Return the prefix of a checkpoint's keys."""
    return f"{FOLDER}/step-{step:09d}"


def write_checkpoint(store: Store, state: TrainingState, tensors: Tensors, retention: Retention) -> int:
    """Write a checkpoint, then remove those that need not stay; return the bytes written."""
    files, written = {}, 0
    for name, values in tensors.items():
        content = save(dict(values))
        files[f"{name}.safetensors"] = digest = hashlib.sha256(content).hexdigest()
        store.write(f"{folder(state.step)}/{name}.safetensors", content, digest)
        written += len(content)
    whole = state.model_copy(update={"files": files})
    store.write(f"{folder(state.step)}/{STATE_NAME}", (whole.model_dump_json(indent=1) + "\n").encode())
    _remove_old(store, state.step, retention)
    return written


def _remove_old(store: Store, newest: int, retention: Retention) -> None:
    keys = store.list(f"{FOLDER}/")
    steps = [step for step in _steps(keys) if step <= newest]
    stays = {
        folder(s) for s in steps if s in steps[-retention.last :] or (retention.every and s % retention.every == 0)
    }
    old = [key for key in keys if key.rpartition("/")[0] not in stays]
    for key in sorted(old, key=lambda key: not key.endswith(STATE_NAME)):  # first what makes it a checkpoint
        store.delete(key)


def read_checkpoint(store: Store) -> tuple[TrainingState, dict[str, dict[str, Tensor]]] | None:
    """Return the newest whole checkpoint, ``None`` if there is none at all; damaged ones are reported and passed over.

    Raises:
        DataError: if there are checkpoints, but all of them are damaged.

    """
    first: DataError | None = None
    for step in reversed(_steps(store.list(f"{FOLDER}/"))):
        try:
            state = _read_state(store, step)
            return state, _read_tensors(store, state)
        except DataError as error:
            first = first or error
            emit("bad_checkpoint", step=step, reason=str(error))
    if first is not None:
        raise DataError(f"{first}; no older checkpoint is left: restore one, or start again in another --run")
    return None


def _steps(keys: Iterable[str]) -> list[int]:
    """Return the steps that have a state, ascending."""
    return sorted(int(match[1]) for key in keys if (match := _STATE.fullmatch(key)))


def _read_state(store: Store, step: int) -> TrainingState:
    key = f"{folder(step)}/{STATE_NAME}"
    try:
        return TrainingState.model_validate_json(store.read(key))
    except (ValidationError, FileNotFoundError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else "it is gone"
        raise DataError(f"training state {store.url(key)} is damaged: {reason}") from error


def _read_tensors(store: Store, state: TrainingState) -> dict[str, dict[str, Tensor]]:
    tensors = {}
    for name, digest in state.files.items():
        key = f"{folder(state.step)}/{name}"
        try:
            content, found = store.read_hashed(key)
            if found == digest:
                tensors[name.removesuffix(".safetensors")] = load(bytes(content))
        except (FileNotFoundError, SafetensorError) as error:
            raise DataError(f"training state {store.url(key)} is missing or damaged: {error}") from error
        if found != digest:
            raise DataError(f"training state {store.url(key)} is damaged: its SHA-256 is not the one in {STATE_NAME}")
    return tensors


class BackgroundWriter:
    """Runs one task after another in a thread, at most one of them at a time, and remembers failures.

    Args:
        most_failures: in a row; then :meth:`submit` raises. Storage that is away for a while costs a checkpoint, not the run.

    """

    def __init__(self, most_failures: int) -> None:
        self._most = most_failures
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[dict[str, Any]] | None = None
        self.failures = 0
        self.done: list[dict[str, Any]] = []

    def submit(self, task: Callable[[], dict[str, Any]]) -> float:
        """Run a task that returns facts; wait for the one before; return the seconds of waiting.

        Raises:
            StorageError: if as many tasks in a row as are allowed have failed.

        """
        waited = self.settle()
        if self.failures > self._most:
            raise StorageError(f"{self.failures} checkpoints in a row could not be written; the reasons are above")
        self._pending = self._pool.submit(task)
        return waited

    def settle(self) -> float:
        """Wait for what is on its way; return the seconds of waiting."""
        started = time.monotonic()
        if self._pending is not None:
            try:
                self.done.append(self._pending.result())
                self.failures = 0
            except GHNError as error:
                self.failures += 1
                emit("checkpoint_failed", failures=self.failures, reason=str(error))
            self._pending = None
        return time.monotonic() - started

    def close(self) -> None:
        """Wait for everything; raises :class:`StorageError` if the last task failed."""
        self.settle()
        self._pool.shutdown()
        if self.failures:
            raise StorageError(
                "the last checkpoint could not be written; the reason is above. Run the same command again"
            )
