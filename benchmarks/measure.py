"""How things are measured: medians of interleaved runs, and parts that need a process of their own."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

THREADS = 2


class Report:
    """The rows of one run; each is shown as soon as it is known."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.growth: dict[str, list[dict[str, Any]]] = {}

    def row(
        self,
        name: str,
        value: float,
        unit: str,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
        **facts: Any,
    ) -> None:
        """Add a row; it is met if the value keeps its one bound."""
        bound, sign = (at_most, "<=") if at_most is not None else (at_least, ">=")
        if bound is None:
            raise ValueError(f"row {name} needs a bound")
        met = value <= bound if sign == "<=" else value >= bound
        rounded = {key: round(fact, 5) if isinstance(fact, float) else fact for key, fact in facts.items()}
        self.rows.append(
            {"id": name, "value": round(value, 5), "unit": unit, "target": f"{sign} {bound:g}", "met": met, **rounded}
        )
        show(f"{name:30s} {value:10.3f} {unit:24s} {sign} {bound:<6g} {'' if met else 'NOT MET '}{_facts(rounded)}")

    def grow(self, name: str, **facts: Any) -> None:
        """Add a line to one of the tables of growth."""
        self.growth.setdefault(name, []).append(facts)
        show(f"{name:30s} {_facts(facts)}")


def show(line: str) -> None:
    sys.stdout.write(line.rstrip() + "\n")
    sys.stdout.flush()


def _facts(facts: dict[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in facts.items()
    )


def seconds(function: Callable[[], Any]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def medians(runs: int, *functions: Callable[[], Any]) -> list[float]:
    """Median seconds of each function; all take turns, so that a slow minute of the machine slows all of them."""
    for function in functions:
        function()
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(runs):
        for function, taken in zip(functions, times, strict=True):
            taken.append(seconds(function))
    return [statistics.median(taken) for taken in times]


@contextlib.contextmanager
def on_core(number: int) -> Iterator[None]:
    """Keep this process, and those it starts, on one core (of those it may use) for the length of a block."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[number % len(cores)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def in_process(module: str, *arguments: str, lean: bool = False) -> dict[str, float]:
    """Run ``python -m benchmarks.MODULE ARGUMENTS``; returns the JSON of its last line.

    With ``lean`` it gives freed memory back at once, so that peaks of memory are of what is in use.
    """
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"} if lean else None
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def memory(name: str) -> int:
    """Bytes of one line of this process's status: VmRSS (now) or VmHWM (peak)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def forget_peak() -> int:
    """Begin a new peak of memory; returns the memory in use."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")
