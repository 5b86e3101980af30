"""Measure what networks cost on this machine, and fit the cost model by which training deals them over ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ghn import Architecture, sample_architectures
from ghn.cost import KINDS, CostModel, amounts_of
from ghn.errors import InputError
from ghn.genotype import ArchitectureSpec
from pipelines.progress import Progress
from pipelines.storage import LocalStore

_MIN_NETWORKS = 4 * len(KINDS)


class Measured(NamedTuple):
    """Seconds of a network's forward and backward pass, and bytes that it keeps between the two."""

    spec: ArchitectureSpec
    seconds: float
    saved_bytes: float


def calibrate(out: Path, *, networks: int, images: int, image_size: int, seed: int) -> dict[str, Any]:
    """Measure so many networks, fit half of them, and compare with the other half; write the model fitted to all.

    Args:
        out: JSON file, for a recipe's ``training.cost_model``.
        networks: of the training split.
        images: of a batch.
        image_size: in pixels.
        seed: of the networks.

    Returns:
        Relative errors, in percent, for the half that was not fitted: see :func:`relative_errors`.

    """
    if networks < _MIN_NETWORKS:
        raise InputError(f"networks={networks}: give at least {_MIN_NETWORKS} to fit {len(KINDS)} coefficients")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    measured = measure_networks(networks, images, image_size, seed, device)
    half = measured[::2]
    errors = relative_errors(fit(half, images, ""), measured[1::2], images)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    model = fit(measured, images, f"{name}, {images} images of {image_size} pixels, {networks} networks")
    LocalStore(str(out.parent)).write(out.name, model.to_json().encode())
    return errors


def measure_networks(
    count: int, images: int, image_size: int, seed: int, device: torch.device, *, progress: bool = True
) -> list[Measured]:
    """Return measurements of the first networks of the training split."""
    batch = torch.randn(images, 3, image_size, image_size, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (images,), device=device)
    found: list[Measured] = []
    with Progress("calibrate", count, unit="network") as shown:
        index = 0
        while len(found) < count:
            (architecture,) = sample_architectures("train", 1, seed, image_size=image_size, start=index)
            index += 1
            if isinstance(architecture.spec, ArchitectureSpec):
                seconds, saved = _measure(architecture, batch, labels)
                found.append(Measured(architecture.spec, seconds, saved))
                if progress:
                    shown.update(seconds=round(seconds, 3))
    return found


def _measure(architecture: Architecture, images: Tensor, labels: Tensor) -> tuple[float, float]:
    parameters = {
        name: p.detach().to(images.device).requires_grad_() for name, p in architecture.network().named_parameters()
    }
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def step() -> None:
        loss = F.cross_entropy(architecture.run(parameters, images, training=True), labels)
        torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    own = sum(p.numel() * p.element_size() for p in parameters.values())
    times = []
    for _ in range(2):
        _wait(images)
        started = time.perf_counter()
        step()
        _wait(images)
        times.append(time.perf_counter() - started)
    return min(times), float(sum(kept.values()) + own)  # what is kept holds the parameters; their gradients come to it


def _wait(tensor: Tensor) -> None:
    if tensor.device.type == "cuda":
        torch.cuda.synchronize(tensor.device)


def fit(measured: Sequence[Measured], images: int, device: str) -> CostModel:
    """Fit coefficients, none of them negative, with equal weight on all networks' relative errors."""
    from scipy.optimize import nnls

    amounts = amounts_of([m.spec for m in measured], images)
    fitted = []
    for values in ([m.seconds for m in measured], [m.saved_bytes for m in measured]):
        rows = amounts / np.array(values)[:, None]
        scale = rows.max(axis=0)
        scale[scale == 0] = 1.0
        solution, _ = nnls(rows / scale, np.ones(len(rows)))
        fitted.append(tuple((solution / scale).tolist()))
    return CostModel(seconds=fitted[0], saved_bytes=fitted[1], device=device)


def relative_errors(model: CostModel, measured: Sequence[Measured], images: int) -> dict[str, Any]:
    """Return how far estimates are from measurements, in percent."""

    def errors(which: Callable[[Any], float]) -> np.ndarray:
        estimates = np.array([which(model.estimate(m.spec, images)) for m in measured])
        return np.abs(estimates / np.array([which(m) for m in measured]) - 1)

    seconds, saved = errors(lambda x: x.seconds), errors(lambda x: x.saved_bytes)
    return {
        "networks": len(measured),
        "seconds_median_error_percent": round(100 * float(np.median(seconds)), 1),
        "seconds_90th_error_percent": round(100 * float(np.quantile(seconds, 0.9)), 1),
        "bytes_median_error_percent": round(100 * float(np.median(saved)), 1),
        "bytes_90th_error_percent": round(100 * float(np.quantile(saved, 0.9)), 1),
    }
