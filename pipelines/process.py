"""How a process of ours uses threads and memory (no result depends on it; docs/performance-log.md has figures), and how it ends."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Any

_SPIN = "5000"  # some ten microseconds: most gaps between two parallel loops are shorter
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of mallopt(3)
_KEEP = 1 << 30
_PR_SET_PDEATHSIG = 1  # of prctl(2)
PARENT_VARIABLE = "GHN_LAUNCHER"


def tune_process() -> None:
    """Make this process and those that it starts quick with large tensors; call it before torch is imported.

    * OpenMP's threads wait for the next loop actively, but briefly: always spinning stalls other processes on a busy machine,
      and never spinning makes every small operation wait for a thread to wake up.
    * Freed memory stays with the process. The C library would give large blocks back at once, and the next tensor of
      that size would be mapped and zeroed page by page. Threads share one arena: their own ones hold no large blocks.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPIN)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it
    if mallopt is not None and not {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & set(os.environ):
        mallopt(_M_MMAP_THRESHOLD, _KEEP)
        mallopt(_M_TRIM_THRESHOLD, _KEEP)
        mallopt(_M_ARENA_MAX, 1)


def die_with_parent() -> None:
    """Let the system kill this process when the launcher that started it is gone, however that ended.

    Otherwise ranks would go on beside those of the next start. It applies where ``GHN_LAUNCHER`` names the launcher, and under
    ``torchrun`` and ``deepspeed``; a rank that a shell or a container started stays alive.
    """
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is None and not {"TORCHELASTIC_RUN_ID", "CROSS_RANK"} & set(os.environ):
        return
    die_with(None if parent is None else int(parent))


def die_with(parent: int | None) -> None:
    """Let the system kill this process when its parent ends; ``parent`` is its process id, in case it is gone already."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)  # Linux has it
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


class Signals:
    """Notes signals while it is entered, instead of what they would do: work can then end in order.

    Args:
        numbers: of the signals.

    Attributes:
        noted: the signal that came last, 0 if none came.

    """

    def __init__(self, *numbers: int) -> None:
        self.noted = 0
        self._numbers = numbers
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in self._numbers:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        self.noted = number
