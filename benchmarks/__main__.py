"""Run all benchmarks: a table, and ``benchmarks/results/latest.json``; the exit code is 1 if a row is not met."""

from __future__ import annotations

from pipelines.process import tune_process

tune_process()  # before torch is imported, as the command line does

import argparse
import importlib
import json
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

from benchmarks.measure import THREADS, Report, show

RESULTS = Path(__file__).with_name("results") / "latest.json"
PARTS = ("hypernetwork", "any_network", "architectures", "images", "shards", "training", "balance")
_VERSIONS = ("torch", "numpy", "numba", "pillow", "torchvision", "deepspeed", "webdataset")


def machine() -> dict[str, object]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": ", ".join(sorted(names)) or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(gigabytes, 1),
        "threads": THREADS,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("part", nargs="*", choices=[[], *PARTS], help="only these (nothing is written then)")
    parts = parser.parse_args().part or PARTS
    report, started = Report(), time.monotonic()
    for part in parts:
        before = dict(os.environ)  # threads, addresses of servers: each part is as it is alone
        importlib.import_module(f"benchmarks.{part}").measure(report)
        os.environ.clear()
        os.environ.update(before)
    unmet = [row["id"] for row in report.rows if not row["met"]]
    minutes = (time.monotonic() - started) / 60
    show(f"{len(report.rows) - len(unmet)} of {len(report.rows)} rows met in {minutes:.1f} minutes")
    if parts == PARTS:
        versions = {"python": platform.python_version(), **{name: version(name) for name in _VERSIONS}}
        content = {"machine": machine(), "versions": versions, "rows": report.rows, "growth": report.growth}
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(content, indent=1) + "\n")
    return 1 if unmet else 0


if __name__ == "__main__":
    sys.exit(main())
