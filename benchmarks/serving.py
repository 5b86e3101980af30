"""The model server under load: latency and throughput for 1 to 16 clients, and whether its memory grows.

Not a part of ``make bench``: its figures say what a server does on a machine, not how one implementation compares with another.

    python -m benchmarks.serving --model models:/ghn2-digits@candidate [--seconds 15] [--leak-minutes 5]

Needs wrk (https://github.com/wg/wrk), which takes so little of the processor that server and clients can share one machine.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.serving import Server, ghn_serve, serving

_WRK = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = [==[BODY]==]
done = function(summary, latency, requests)
  io.write(string.format("RESULT %.6f %.6f %.6f %.6f %d %d\\n", latency:percentile(50) / 1e6, latency:percentile(95) / 1e6,
    latency:percentile(99) / 1e6, summary.duration / 1e6, summary.requests, summary.errors.status + summary.errors.timeout))
end
"""
_REQUESTS = {
    "resnet18": {"model": "torchvision:resnet18"},
    "resnet50": {"model": "torchvision:resnet50"},
    "resnet50, float16": {"model": "torchvision:resnet50", "dtype": "float16"},
    "resnet50, classifier only": {"model": "torchvision:resnet50", "names": ["fc.*"]},
}


def load(server: Server, request: dict[str, object], clients: int, seconds: float) -> dict[str, float]:
    """Let so many clients ask without pause; return seconds (p50, p95, p99), requests per second, and refusals."""
    while (
        "ghn_requests_in_work 0.0" not in server.get("/metrics")[1]
    ):  # of clients that stopped before their answers came
        time.sleep(0.1)
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_WRK.replace("BODY", json.dumps({"inputs": [request]})))
        script.flush()
        command = ["wrk", "-t1", f"-c{clients}", f"-d{round(seconds)}s", "--timeout", "120s", "-s", script.name]
        done = subprocess.run([*command, f"{server.url}/invocations"], capture_output=True, text=True, check=True)
    p50, p95, p99, duration, count, errors = map(float, re.findall(r"RESULT (.*)", done.stdout)[0].split())
    return {"p50": p50, "p95": p95, "p99": p99, "per_second": (count - errors) / duration, "refused": errors}


def _show(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--leak-minutes", type=float, default=0)
    given = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.stderr.write("wrk is not installed\n")
        return 3
    with tempfile.TemporaryDirectory() as folder:
        command = (*ghn_serve(given.model), "--workers", str(given.workers))
        with serving(command, Path(folder)) as server:
            _show(f"{os.cpu_count()} cores, {given.workers} worker(s)")
            _show("| request | clients | p50 s | p95 s | p99 s | requests/s | refused | memory MiB |")
            _show("|---|---|---|---|---|---|---|---|")
            for name, request in _REQUESTS.items():
                for clients in (1, 2, 4, 8, 16):
                    row = load(server, request, clients, given.seconds)
                    times = " | ".join(f"{row[key]:.3f}" for key in ("p50", "p95", "p99"))
                    rest = f"{row['per_second']:.1f} | {row['refused']:.0f} | {server.resident_mib:.0f}"
                    _show(f"| {name} | {clients} | {times} | {rest} |")
            started = time.monotonic()
            while time.monotonic() - started < 60 * given.leak_minutes:
                row = load(server, _REQUESTS["resnet18"], 4, 30)
                minutes = (time.monotonic() - started) / 60
                _show(f"{minutes:.1f} min: {row['per_second']:.1f} requests/s, {server.resident_mib:.0f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
