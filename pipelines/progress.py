"""Progress of long work: a bar on a terminal, JSON lines elsewhere, and a file that others may follow.

Every event is one JSON object with ``event``, ``time`` (seconds since the epoch) and its own fields. When the variable
``GHN_EVENTS`` names a file, events are appended there too; ``ghn demo`` follows that file.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

EVENTS_VARIABLE = "GHN_EVENTS"
_INTERVAL_S = 2.0


def emit(event: str, **fields: Any) -> None:
    """Report one event: to the followed file, and as a JSON line on standard error unless that is a terminal."""
    line = json.dumps({"event": event, "time": round(time.time(), 3), **fields})
    if path := os.environ.get(EVENTS_VARIABLE):
        with Path(path).open("a") as stream:
            stream.write(line + "\n")
    if not sys.stderr.isatty():
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


class Progress:
    """Progress of one job with a known number of steps.

    Args:
        job: what is going on, e.g. ``"train"``.
        total: steps in all.
        unit: what a step is, e.g. ``"network"``.
        initial: steps that were done before (after a resume).

    """

    def __init__(self, job: str, total: int, *, unit: str = "step", initial: int = 0) -> None:
        self.job, self.total, self.unit = job, total, unit
        self.initial = self.done = initial
        self.started = time.monotonic()
        self._last = -_INTERVAL_S
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=initial, desc=job, unit=unit, dynamic_ncols=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if kind is None:
            self._report({}, force=True)
        if self._bar is not None:
            self._bar.close()

    def update(self, steps: int = 1, **facts: Any) -> None:
        """Count steps as done; ``facts`` (loss, accuracy, ...) are shown beside rate and time left."""
        self.done += steps
        if self._bar is not None:
            self._bar.set_postfix(facts, refresh=False)
            self._bar.update(steps)
        self._report(facts, force=False)

    def _report(self, facts: dict[str, Any], *, force: bool) -> None:
        now = time.monotonic()
        if not force and now - self._last < _INTERVAL_S:
            return
        self._last = now
        rate = (self.done - self.initial) / max(now - self.started, 1e-9)
        eta = (self.total - self.done) / rate if rate > 0 else None
        emit(
            "progress",
            job=self.job,
            done=self.done,
            total=self.total,
            unit=self.unit,
            rate=round(rate, 3),
            eta_s=None if eta is None else round(eta, 1),
            **facts,
        )
