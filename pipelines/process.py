"""How a process of ours uses threads and memory. Results do not depend on it; see docs/performance-log.md for figures."""

from __future__ import annotations

import ctypes
import os

_SPIN = "5000"  # some ten microseconds: most gaps between two parallel loops are shorter
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of mallopt(3)
_KEEP = 1 << 30


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
