"""One meta-training step: images through several predicted networks, gradients back into the hypernetwork.

Source: paper, eq. 2 (the meta-objective) and section 4 (meta-batches). Networks run one after another and their
activations are freed at once; the gradients with respect to the predicted parameters then go through the hypernetwork
together. A network with a non-finite loss or gradient, or one that raises (out of memory, above all), takes no part and is
named. The step knows no engine: ``hypernet`` may be a :class:`~ghn.hypernet.GHN` or anything that wraps one and returns its
predictions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ghn.architecture import Architecture
from ghn.errors import StopRequestedError, first_line
from ghn.graph import ArchitectureGraph

Predictor = Callable[[Sequence[ArchitectureGraph]], list[dict[str, Tensor]]]
Images = tuple[Tensor, Tensor] | Callable[[], tuple[Tensor, Tensor]]
"""Images (N, 3, S, S) and class numbers (N,), or what gives them when they are needed."""

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory")


class Skipped(NamedTuple):
    """A network that did not count: its position in the meta-batch, its label, and why."""

    at: int
    label: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class MetaStep:
    """The outcome of a step on this process's share of a meta-batch.

    Attributes:
        loss: scalar whose value is the weighted sum of the networks' losses; ``loss.backward()`` puts the meta-gradient
            into the hypernetwork. ``None`` if every network was skipped.
        losses: cross-entropy of each network that counted.
        accuracies: top-1 accuracy of each network that counted, 0 to 1.
        skipped: the networks that did not count.
        network_seconds: time in the target networks' own forward and backward passes (on a GPU, until they are queued).

    """

    loss: Tensor | None
    losses: tuple[float, ...]
    accuracies: tuple[float, ...]
    skipped: tuple[Skipped, ...]
    network_seconds: float = 0.0


class _Attach(torch.autograd.Function):
    """A scalar with a known gradient for each of many tensors."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor], *tensors: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(gradient * grad_output for gradient in ctx.gradients)


class _Result(NamedTuple):
    """One network's loss, accuracy, and (predicted tensor, gradient) pairs."""

    loss: float
    accuracy: float
    gradients: list[tuple[Tensor, Tensor]]


def meta_step(
    hypernet: Predictor,
    architectures: Sequence[Architecture],
    batches: Sequence[Images],
    *,
    weight: float,
    label_smoothing: float = 0.0,
    network_clip: float | None = None,
    seeds: Sequence[int] | None = None,
    autocast: torch.dtype | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> MetaStep:
    """Predict, run and differentiate each network of the meta-batch.

    Args:
        hypernet: graphs -> predicted parameters.
        architectures: this process's share of the meta-batch (one or more).
        batches: for each network its images; as published, all the same ones.
        weight: factor on each network's loss, 1 / size of the whole meta-batch for the mean of eq. 2.
        label_smoothing: 0 to 1.
        network_clip: largest norm of one network's gradient with respect to its parameters (> 0). These norms differ
            a hundredfold between networks; unclipped, a few decide each step. ``None``, as published, leaves them.
        seeds: random seed of each network's dropout; ``None`` goes on with torch's generator.
        autocast: type in which the networks (not the hypernetwork) compute, e.g. ``torch.bfloat16``.
        should_stop: asked before each network.

    Returns:
        Loss, what each network gave, and the networks that were skipped; ``loss.backward()`` is left to the caller.

    Raises:
        StopRequestedError: if ``should_stop`` said so.

    """
    predictions = hypernet([architecture.graph for architecture in architectures])
    results: list[_Result] = []
    skipped: list[Skipped] = []
    network_seconds = 0.0
    for i, (architecture, prediction, batch) in enumerate(zip(architectures, predictions, batches, strict=True)):
        if should_stop():
            raise StopRequestedError("stopped before the step was done")
        if seeds is not None:
            torch.manual_seed(seeds[i])
        images = batch() if callable(batch) else batch
        started = time.perf_counter()
        try:
            result = _run(architecture, prediction, images, weight, label_smoothing, network_clip, autocast)
        except Exception as error:
            result = failure_of(error)
        network_seconds += time.perf_counter() - started
        if isinstance(result, str):
            skipped.append(Skipped(i, architecture.label, result))
        else:
            results.append(result)
    return MetaStep(
        loss=_weighted_sum(results, weight),
        losses=tuple(result.loss for result in results),
        accuracies=tuple(result.accuracy for result in results),
        skipped=tuple(skipped),
        network_seconds=network_seconds,
    )


def _weighted_sum(results: Sequence[_Result], weight: float) -> Tensor | None:
    """Return the networks' losses as one scalar from which the gradients go on into the hypernetwork."""
    pairs = [pair for result in results for pair in result.gradients]
    if not pairs:
        return None
    total = pairs[0][0].new_tensor(weight * sum(result.loss for result in results))
    attached: Tensor = _Attach.apply(total, [gradient for _, gradient in pairs], *(tensor for tensor, _ in pairs))
    return attached


def _run(
    architecture: Architecture,
    prediction: dict[str, Tensor],
    batch: tuple[Tensor, Tensor],
    weight: float,
    label_smoothing: float,
    network_clip: float | None,
    autocast: torch.dtype | None,
) -> _Result | str:
    """Run one network forward and backward; return its result, or why it does not count."""
    images_NCHW = batch[0].to(memory_format=torch.channels_last)  # much faster depthwise convolutions on CPUs
    labels_N = batch[1]
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in prediction.items()}
    with torch.autocast(images_NCHW.device.type, dtype=autocast, enabled=autocast is not None):
        logits = architecture.run(leaves, images_NCHW, training=True)
        loss = F.cross_entropy(logits, labels_N, label_smoothing=label_smoothing)
    if not torch.isfinite(loss):
        return "non-finite loss"
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    used = [(tensor, grad) for tensor, grad in zip(prediction.values(), grads, strict=True) if grad is not None]
    norm = torch.stack(torch._foreach_norm([grad for _, grad in used])).norm()
    if not torch.isfinite(norm):
        return "non-finite gradient"
    factor = weight if network_clip is None else weight * min(1.0, network_clip / max(norm.item(), 1e-12))
    torch._foreach_mul_([grad for _, grad in used], factor)  # in place: together they are as large as all networks
    return _Result(loss.item(), (logits.argmax(dim=1) == labels_N).float().mean().item(), used)


def failure_of(error: Exception) -> str:
    """Return an error in one line, for the list of skipped networks."""
    first, text = first_line(error), str(error).lower()
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(sign in text for sign in _OUT_OF_MEMORY):
        return f"out of memory: {first}"
    return f"{type(error).__name__}: {first}"
