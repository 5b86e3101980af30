"""From any module to its predicted parameters, with a GHN-2 of ImageNet's size (random weights: they do not matter)."""

from __future__ import annotations

from pipelines.process import tune_process

tune_process()  # before torch is imported, as the command line does

import gc
import json
import statistics
import sys
import time
from typing import Any

import torch

import ghn
from benchmarks.measure import THREADS, Report, forget_peak, in_process, memory
from pipelines.named_networks import load_model


def make_hypernet() -> Any:
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    return ghn.GHN(ghn.GHNConfig(num_classes=1000, max_shape=(64, 64, 16, 16))).eval()


def module_to_parameters(hypernet: Any, module: Any, size: int) -> dict[str, torch.Tensor]:
    graph = ghn.trace(module, torch.empty(1, 3, size, size, device="meta"))
    with torch.no_grad():
        return ghn.predict(hypernet, graph, allow_default=["aux*", "Aux*"])


def timed(hypernet: Any, module: Any, size: int) -> float:
    started = time.perf_counter()
    module_to_parameters(hypernet, module, size)
    return time.perf_counter() - started


def load(name: str) -> tuple[Any, int]:
    return load_model(f"torchvision:{name}", num_classes=1000).eval(), 299 if name == "inception_v3" else 224


def first_call() -> dict[str, float]:
    """In a process of its own: the first call after import."""
    hypernet, (module, size) = make_hypernet(), load("resnet50")
    return {"seconds": timed(hypernet, module, size)}


def peak_memory(name: str) -> dict[str, float]:
    """In a process of its own: memory beyond what was there, after a small network has loaded all libraries."""
    hypernet = make_hypernet()
    timed(hypernet, *load("mobilenet_v3_small"))
    module, size = load(name)
    gc.collect()
    before = forget_peak()
    predicted = module_to_parameters(hypernet, module, size)
    peak = memory("VmHWM")
    own = sum(t.numel() * t.element_size() for t in hypernet.parameters())
    return {"ratio": (peak - before - own) / sum(t.numel() * t.element_size() for t in predicted.values())}


def measure(report: Report) -> None:
    from torchvision import models

    first = statistics.median(in_process("any_network", "first")["seconds"] for _ in range(3))
    report.row("resnet50_first_call", first, "s", at_most=1.0)
    hypernet, resnet = make_hypernet(), load("resnet50")
    warm = [timed(hypernet, *resnet) for _ in range(35)][10:]
    report.row("resnet50_predict", statistics.median(warm), "s, graph and prediction", at_most=0.10)
    times = {}
    for name in models.list_models(module=models):
        model = load(name)
        times[name] = statistics.median(timed(hypernet, *model) for _ in range(3))
        gc.collect()
    report.row("torchvision_median", statistics.median(times.values()), "s", at_most=0.25, networks=len(times))
    slowest = max(times, key=times.__getitem__)
    report.row("torchvision_slowest", times[slowest], "s", at_most=3.0, network=slowest)
    for name in ("resnet50", "vit_l_16"):
        ratio = in_process("any_network", "memory", name)["ratio"]
        report.row(f"peak_memory_{name}", ratio, "x predicted parameters", at_most=3.0)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(first_call() if sys.argv[1] == "first" else peak_memory(sys.argv[2])) + "\n")
