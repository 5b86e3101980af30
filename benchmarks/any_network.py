"""Speed and memory from a module to its predicted parameters: ``make bench``.

Prints a table and writes ``benchmarks/results/latest.json``; exits with 1 if a row is not met. The hypernetwork is a GHN-2 of
ImageNet's size with random weights: its speed does not depend on them.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

for _name, _value in (("OMP_WAIT_POLICY", "PASSIVE"), ("THP_MEM_ALLOC_ENABLE", "1")):  # as the command line sets them
    os.environ.setdefault(_name, _value)

import torch

import ghn
from pipelines.models import load_model

RESULTS = Path(__file__).with_name("results") / "latest.json"
THREADS = 2


def make_hypernet() -> Any:
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    return ghn.GHN(ghn.GHNConfig(num_classes=1000, max_shape=(64, 64, 16, 16))).eval()


def module_to_parameters(hypernet: Any, module: Any, size: int) -> dict[str, torch.Tensor]:
    graph = ghn.trace(module, torch.empty(1, 3, size, size, device="meta"))
    with torch.no_grad():
        return ghn.predict(hypernet, graph, allow_default=["aux*", "Aux*"])


def seconds(hypernet: Any, module: Any, size: int) -> float:
    started = time.perf_counter()
    module_to_parameters(hypernet, module, size)
    return time.perf_counter() - started


def load(name: str) -> tuple[Any, int]:
    return load_model(f"torchvision:{name}", num_classes=1000).eval(), 299 if name == "inception_v3" else 224


def first_call() -> dict[str, float]:
    """In a process of its own: the first call after import."""
    hypernet, (module, size) = make_hypernet(), load("resnet50")
    return {"seconds": seconds(hypernet, module, size)}


def peak_memory(name: str) -> dict[str, float]:
    """In a process of its own: memory beyond what was there, after a small network has loaded all libraries."""
    hypernet = make_hypernet()
    seconds(hypernet, *load("mobilenet_v3_small"))
    module, size = load(name)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = memory("VmRSS")
    predicted = module_to_parameters(hypernet, module, size)
    peak = memory("VmHWM")
    own = sum(t.numel() * t.element_size() for t in hypernet.parameters())
    return {"ratio": (peak - before - own) / sum(t.numel() * t.element_size() for t in predicted.values())}


def memory(name: str) -> int:
    """Bytes of one line of the process's status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def in_process(*arguments: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure() -> list[dict[str, Any]]:
    from torchvision import models

    rows = []

    def row(name: str, value: float, unit: str, target: float) -> None:
        rows.append({"id": name, "value": round(value, 4), "unit": unit, "target": target, "met": value <= target})
        sys.stdout.write(
            f"{name:34s} {value:8.3f} {unit:6s} at most {target:g}{'' if value <= target else '  NOT MET'}\n"
        )
        sys.stdout.flush()

    first = statistics.median(in_process("first")["seconds"] for _ in range(3))
    row("resnet50_predict_first_call", first, "s", 1.0)
    hypernet, resnet = make_hypernet(), load("resnet50")
    warm = [seconds(hypernet, *resnet) for _ in range(25)][5:]
    row("resnet50_predict", statistics.median(warm), "s", 0.10)
    medians = {}
    for name in models.list_models(module=models):
        model = load(name)
        medians[name] = statistics.median(seconds(hypernet, *model) for _ in range(3))
        gc.collect()
    row("torchvision_median", statistics.median(medians.values()), "s", 0.25)
    slowest = max(medians, key=medians.__getitem__)
    row(f"torchvision_slowest ({slowest})", medians[slowest], "s", 3.0)
    for name in ("resnet50", "vit_l_16"):
        row(f"peak_memory ({name})", in_process("memory", name)["ratio"], "x", 3.0)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="*")
    part = parser.parse_args().part
    if part:
        sys.stdout.write(json.dumps(first_call() if part[0] == "first" else peak_memory(part[1])) + "\n")
        return 0
    rows = measure()
    machine = {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": THREADS,
        "python": platform.python_version(),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": machine, "torch": torch.__version__, "rows": rows}, indent=1) + "\n")
    return 0 if all(row["met"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
