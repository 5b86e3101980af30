"""A meta-training step on 8 networks and 64 images of 32 pixels, and the target networks in it."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import THREADS, Report, forget_peak, in_process, medians, memory

FIRST = 18  # the networks of benchmarks.hypernetwork
_STEPS = 10
_WARM = 2


def measure(report: Report) -> None:
    measure_step(report)
    measure_networks(report)
    measure_call(report)
    grow_with_meta_batch(report)


def measure_step(report: Report) -> None:
    """Run ``ghn train`` and look at its metrics."""
    from benchmarks.images import make_images
    from pipelines.shards.jobs import shard_deepnets, shard_images

    with tempfile.TemporaryDirectory() as folder:
        make_images(Path(folder) / "images.zip", 2000, 32, 32)
        shard_images(f"{folder}/images.zip", f"{folder}/images", seed=0, shard_samples=500)
        shard_deepnets(["train"], f"{folder}/nets", count=200, seed=0, shard_samples=50, num_classes=2)
        settings = {
            "images.url": f"{folder}/images",
            "architectures.url": f"{folder}/nets",
            "model.num_classes": 2,
            "training.meta_batch": 8,
            "training.steps": _STEPS,
            "training.processes": 1,
        }
        command = [sys.executable, "-m", "pipelines.cli", "train", "--recipe", "cifar10", "--run", f"{folder}/run"]
        for key, value in settings.items():
            command += ["--set", f"{key}={value}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines][_WARM:]
    taken = sum(8 / row["architectures_per_s"] for row in rows)
    outside = sum(8 / row["architectures_per_s"] * row["outside_share"] for row in rows)
    report.row(
        "step_overhead",
        100 * outside / taken,
        "% outside target networks",
        at_most=8,
        seconds_per_step=taken / len(rows),
        largest=100 * max(row["outside_share"] for row in rows),
    )


def measure_networks(report: Report) -> None:
    """Forward and backward of the 8 networks: as modules in a process as torch sets it up, and as training runs them."""
    ways: dict[str, list[float]] = {"plain": [], "fast": [], "plain-one-thread": []}
    losses: dict[str, list[float]] = {}
    for turn in range(5):
        for way, times in ways.items():
            if (
                turn and way == "plain-one-thread"
            ):  # which sums in another order: how far rounding alone moves the losses
                continue
            result = in_process("training", way)
            times.append(result["seconds"])
            losses[way] = [result[f"loss{i}"] for i in range(_STEPS)]
    plain, fast = (statistics.median(ways[way]) for way in ("plain", "fast"))
    apart, noise = (
        max(abs(a - b) / a for a, b in zip(losses["plain"], losses[way], strict=True))
        for way in ("fast", "plain-one-thread")
    )
    report.row(
        "target_forward",
        plain / fast,
        "x faster than plain eager",
        at_least=1.3,
        seconds=fast,
        plain_seconds=plain,
        losses_apart=apart,
        losses_apart_by_rounding=noise,
    )


def run_networks(way: str) -> dict[str, float]:
    """Seconds for all networks (median of three), and the losses of one while it is trained with SGD."""
    if way == "fast":
        from pipelines.process import tune_process

        tune_process()
    import torch
    import torch.nn.functional as F

    from ghn import Architecture, sample_architectures

    torch.set_num_threads(1 if way == "plain-one-thread" else THREADS)
    torch.manual_seed(0)
    architectures = sample_architectures("train", 8, 0, start=FIRST)
    networks = [architecture.network().train() for architecture in architectures]
    images, labels = torch.randn(64, 3, 32, 32), torch.randint(10, (64,))
    if way == "fast":
        images = images.to(memory_format=torch.channels_last)

    def gradients(architecture: Architecture, network: torch.nn.Module) -> tuple[torch.Tensor, ...]:
        parameters = dict(network.named_parameters())
        logits = architecture.run(parameters, images, training=True) if way == "fast" else network(images)
        loss = F.cross_entropy(logits, labels)
        return loss.detach(), *torch.autograd.grad(loss, list(parameters.values()))

    times = []
    for _ in range(4):
        started = time.perf_counter()
        for architecture, network in zip(architectures, networks, strict=True):
            gradients(architecture, network)
        times.append(time.perf_counter() - started)
    losses = {}
    for step in range(_STEPS):
        torch.manual_seed(step)  # of dropout
        loss, *grads = gradients(architectures[4], networks[4])
        losses[f"loss{step}"] = loss.item()
        with torch.no_grad():
            torch._foreach_add_(list(networks[4].parameters()), grads, alpha=-0.01)
    return {"seconds": statistics.median(times[1:]), **losses}


def measure_call(report: Report) -> None:
    """Predicted parameters against a module's own, both in the channels-last format; forward passes."""
    from pipelines.process import tune_process

    tune_process()
    import torch

    from ghn import sample_architectures
    from ghn.functional import run_network

    torch.set_num_threads(THREADS)
    architectures = sample_architectures("train", 8, 0, start=FIRST)
    images = torch.randn(64, 3, 32, 32).to(memory_format=torch.channels_last)
    networks = [architecture.network().eval() for architecture in architectures]
    parameters = [dict(network.named_parameters()) for network in networks]

    @torch.no_grad()
    def module() -> None:
        for network in networks:
            network(images)

    @torch.no_grad()
    def functional() -> None:
        for architecture, values in zip(architectures, parameters, strict=True):
            architecture.run(values, images, training=False)

    @torch.no_grad()
    def called() -> None:
        for network, values in zip(networks, parameters, strict=True):
            run_network(network, values, images)

    own, run, call = medians(25, module, functional, called)
    report.row("functional_call", run / own, "x the module itself", at_most=1.03, any_module=call / own)


def grow_with_meta_batch(report: Report) -> None:
    for size in (1, 2, 4, 8, 16, 32, 64):
        report.grow("meta-step, by meta-batch", **in_process("training", str(size)))


def cost_of_meta_batch(size: int) -> dict[str, float]:
    """Time and memory of a meta-step with small images, where the hypernetwork's part is large."""
    import torch

    from ghn import GHN, sample_architectures
    from ghn.meta_step import meta_step

    torch.set_num_threads(THREADS)
    hypernet = GHN()
    pool = sample_architectures("train", 240, 1, image_size=16, channels=(16,), fc_dims=(32,))
    pool = [architecture for architecture in pool if len(architecture.graph) <= 150][:64]
    batch = torch.randn(8, 3, 16, 16), torch.randint(10, (8,))

    def step(size: int = size) -> None:
        hypernet.zero_grad(set_to_none=True)
        outcome = meta_step(hypernet, pool[:size], [batch] * size, weight=1 / size)
        if outcome.loss is not None:
            outcome.loss.backward()

    step(1)
    before = forget_peak()
    step()
    megabytes = (memory("VmHWM") - before) / 1e6
    (taken,) = medians(3, step)
    return {
        "networks": size,
        "nodes": sum(len(architecture.graph) for architecture in pool[:size]),
        "milliseconds": round(1e3 * taken, 1),
        "milliseconds_per_network": round(1e3 * taken / size, 1),
        "megabytes": round(megabytes, 1),
    }


if __name__ == "__main__":
    part = sys.argv[1]
    sys.stdout.write(json.dumps(cost_of_meta_batch(int(part)) if part.isdigit() else run_networks(part)) + "\n")
