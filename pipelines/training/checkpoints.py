"""Checkpoints of training: written in the background, whole or not at all, on local disk or S3, for any number of ranks.

``checkpoints/step-N/`` holds safetensors files (weights, the optimizer's moments, averaged weights) and ``state.json``, which
names their SHA-256 and is written last. Nothing in them depends on how many ranks wrote them or on the stage of ZeRO.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ghn.errors import DataError, GHNError, StorageError
from pipelines.progress import emit
from pipelines.storage import Store
from pipelines.training.state import TrainingState

FOLDER = "checkpoints"
STATE_NAME = "state.json"
_STATE = re.compile(rf"{FOLDER}/step-(\d{{9}})/{re.escape(STATE_NAME)}")

Tensors = Mapping[str, Mapping[str, Tensor]]
"""Tensors by file (without ``.safetensors``) and name, on the CPU."""


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
    steps = sorted(int(match[1]) for key in keys if (match := _STATE.fullmatch(key)) and int(match[1]) <= newest)
    stays = {
        folder(s) for s in steps if s in steps[-retention.last :] or (retention.every and s % retention.every == 0)
    }
    old = [key for key in keys if key.rpartition("/")[0] not in stays]
    for key in sorted(old, key=lambda key: not key.endswith(STATE_NAME)):  # first what makes it a checkpoint
        store.delete(key)


def latest_state(store: Store) -> TrainingState | None:
    """Return the newest checkpoint's state without looking at its other files, ``None`` if there is no checkpoint."""
    for step in _steps(store):
        state = _read_state(store, step)
        if isinstance(state, TrainingState):
            return state
    return None


def read_checkpoint(store: Store) -> tuple[TrainingState, dict[str, dict[str, Tensor]]] | None:
    """Return the newest whole checkpoint, ``None`` if there is none at all; damaged ones are reported and passed over.

    Raises:
        DataError: if there are checkpoints, but all of them are damaged.

    """
    first: DataError | None = None
    for step in _steps(store):
        state = _read_state(store, step)
        read = state if isinstance(state, DataError) else _read_tensors(store, state)
        if not isinstance(read, DataError) and isinstance(state, TrainingState):
            return state, read
        if isinstance(read, DataError):
            first = first or read
            emit("bad_checkpoint", step=step, reason=str(read))
    if first is not None:
        raise DataError(f"{first}; no older checkpoint is left: restore one, or start again in another --run")
    return None


def _steps(store: Store) -> list[int]:
    return sorted((int(m[1]) for key in store.list(f"{FOLDER}/") if (m := _STATE.fullmatch(key))), reverse=True)


def _read_state(store: Store, step: int) -> TrainingState | DataError:
    key = f"{folder(step)}/{STATE_NAME}"
    try:
        return TrainingState.model_validate_json(store.read(key))
    except (ValidationError, FileNotFoundError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else "it is gone"
        return DataError(f"training state {store.url(key)} is damaged: {reason}")


def _read_tensors(store: Store, state: TrainingState) -> dict[str, dict[str, Tensor]] | DataError:
    tensors = {}
    for name, digest in state.files.items():
        key = f"{folder(state.step)}/{name}"
        try:
            content, found = store.read_hashed(key)
            if found != digest:
                raise DataError(
                    f"training state {store.url(key)} is damaged: its SHA-256 is not the one in {STATE_NAME}"
                )
            tensors[name.removesuffix(".safetensors")] = load(bytes(content))
        except (FileNotFoundError, SafetensorError) as error:
            return DataError(f"training state {store.url(key)} is missing or damaged: {error}")
        except DataError as error:
            return error
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
