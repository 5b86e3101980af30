"""`pipelines.machine`: a container may give less than the machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipelines import machine


@pytest.mark.parametrize(
    ("files", "cores", "gib"),
    [
        ({}, 64, None),
        ({"cpu.max": "max 100000", "memory.max": "max"}, 64, None),
        ({"cpu.max": "350000 100000", "memory.max": str(1 << 30)}, 3, 1),
        ({"cpu.max": "50000 100000"}, 1, None),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64, None),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2, None),
        ({"memory/memory.limit_in_bytes": str(2 << 30)}, 64, 2),
        ({"memory/memory.limit_in_bytes": "9223372036854771712"}, 64, None),
    ],
)
def test_the_control_group_says_how_much_there_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: dict[str, str], cores: int, gib: int | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(machine, "_CONTROL_GROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64))
    assert machine.cores() == cores
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert machine.memory_bytes() == (physical if gib is None else gib << 30)
