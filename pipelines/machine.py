"""What this machine gives, or the container, which may give less: processors and memory."""

from __future__ import annotations

import os
from pathlib import Path

_CONTROL_GROUP = Path("/sys/fs/cgroup")
_MEMORY_FILES = ("memory.max", "memory/memory.limit_in_bytes")  # of control groups, version 2 and 1


def cores() -> int:
    """Return how many processors this process may keep busy, at least 1."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, period = (_read("cpu.max") or f"{_read('cpu/cpu.cfs_quota_us')} {_read('cpu/cpu.cfs_period_us')}").split()
    if quota.isdecimal() and period.isdecimal():  # "max" or -1 where there is no limit
        count = min(count, int(quota) // int(period))
    return max(1, count)


def memory_bytes() -> int:
    """Return how much memory all processes here together may use."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([total, *(int(text) for name in _MEMORY_FILES if (text := _read(name) or "").isdecimal())])


def _read(name: str) -> str | None:
    """Return what a file of the control group says, ``None`` where there is no such file."""
    try:
        return (_CONTROL_GROUP / name).read_text().strip()
    except OSError:
        return None
