"""What a session of training shows of its progress."""

from __future__ import annotations

import math
from typing import Any

from pipelines.progress import Progress

_WINDOW = 0.9  # of the running means that the progress bar shows


class Shown:
    """Progress with running means on rank 0, silence on the others."""

    def __init__(self, rank: int, total: int, initial: int) -> None:
        self._progress = Progress("train", total, initial=initial) if rank == 0 else None
        self._loss = self._accuracy = float("nan")

    def __enter__(self) -> Shown:
        return self

    def __exit__(self, *error: Any) -> None:
        if self._progress is not None:
            self._progress.__exit__(*error)

    def update(self, row: dict[str, Any]) -> None:
        """Count a step; ``row`` is its metrics."""
        if self._progress is None:
            return
        if not math.isnan(row["loss"]):
            first = math.isnan(self._loss)
            self._loss = row["loss"] if first else _WINDOW * self._loss + (1 - _WINDOW) * row["loss"]
            self._accuracy = row["accuracy"] if first else _WINDOW * self._accuracy + (1 - _WINDOW) * row["accuracy"]
        self._progress.update(
            loss=round(self._loss, 3), acc=f"{100 * self._accuracy:.1f}%", archs_per_s=row["architectures_per_s"]
        )
