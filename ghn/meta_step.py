"""One meta-training step: images through several predicted networks, gradients back into the hypernetwork.

Source: paper, eq. 1 (the meta-objective) and section 3.1 (meta-batches). The step knows no engine: ``hypernet`` may be a
:class:`~ghn.hypernet.GHN` or anything that wraps one and returns its predictions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ghn.architecture import Architecture
from ghn.graph import ArchitectureGraph

Predictor = Callable[[Sequence[ArchitectureGraph]], list[dict[str, Tensor]]]


@dataclass(frozen=True, kw_only=True)
class MetaStep:
    """The outcome of a step on this process's share of a meta-batch.

    Attributes:
        loss: scalar whose value is the weighted sum of the networks' losses; ``loss.backward()`` puts the meta-gradient
            into the hypernetwork. ``None`` if every network was skipped.
        losses: cross-entropy of each network that counted.
        accuracies: top-1 accuracy of each network that counted, 0 to 1.
        skipped: (architecture label, reason) of each network that did not count.
        network_seconds: time in the target networks' own forward and backward passes (on a GPU, until they are queued).

    """

    loss: Tensor | None
    losses: tuple[float, ...]
    accuracies: tuple[float, ...]
    skipped: tuple[tuple[str, str], ...]
    network_seconds: float = 0.0


class _Attach(torch.autograd.Function):
    """A scalar with a known gradient for each of many tensors."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: Sequence[Tensor], *tensors: Tensor) -> Tensor:  # type: ignore[override]
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return None, None, *(gradient * grad_output for gradient in ctx.gradients)


def meta_step(
    hypernet: Predictor,
    architectures: Sequence[Architecture],
    batches: Sequence[tuple[Tensor, Tensor]],
    *,
    weight: float,
    label_smoothing: float = 0.0,
    network_clip: float | None = None,
    seeds: Sequence[int] | None = None,
) -> MetaStep:
    """Predict, run and differentiate each network of the meta-batch.

    Networks run one after another and their activations are freed at once; the gradients with respect to the predicted
    parameters then go through the hypernetwork together. A network with a non-finite loss or gradient takes no part.

    Args:
        hypernet: graphs -> predicted parameters.
        architectures: this process's share of the meta-batch (one or more).
        batches: for each network its images (N, 3, S, S) and class numbers (N,); as published, all the same ones.
        weight: factor on each network's loss, 1 / size of the whole meta-batch for the mean of eq. 1.
        label_smoothing: 0 to 1.
        network_clip: largest norm of one network's gradient with respect to its parameters (> 0). These norms differ
            a hundredfold between networks; unclipped, a few decide each step. ``None``, as published, leaves them.
        seeds: random seed of each network's dropout; ``None`` goes on with torch's generator.

    """
    predictions = hypernet([architecture.graph for architecture in architectures])
    tensors: list[Tensor] = []
    gradients: list[Tensor] = []
    losses: list[float] = []
    accuracies: list[float] = []
    skipped: list[tuple[str, str]] = []
    network_seconds = 0.0
    for i, (architecture, prediction, batch) in enumerate(zip(architectures, predictions, batches, strict=True)):
        if seeds is not None:
            torch.manual_seed(seeds[i])
        images_NCHW = batch[0].to(memory_format=torch.channels_last)  # much faster depthwise convolutions on CPUs
        labels_N = batch[1]
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in prediction.items()}
        started = time.perf_counter()
        logits = architecture.run(leaves, images_NCHW, training=True)
        loss = F.cross_entropy(logits, labels_N, label_smoothing=label_smoothing)
        if not torch.isfinite(loss):
            skipped.append((architecture.label, "non-finite loss"))
            continue
        grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        network_seconds += time.perf_counter() - started
        used = [(tensor, grad) for tensor, grad in zip(prediction.values(), grads, strict=True) if grad is not None]
        norm = torch.stack(torch._foreach_norm([grad for _, grad in used])).norm()
        if not torch.isfinite(norm):
            skipped.append((architecture.label, "non-finite gradient"))
            continue
        factor = weight if network_clip is None else weight * min(1.0, network_clip / max(norm.item(), 1e-12))
        torch._foreach_mul_([grad for _, grad in used], factor)  # in place: together they are as large as all networks
        tensors += [tensor for tensor, _ in used]
        gradients += [grad for _, grad in used]
        losses.append(loss.item())
        accuracies.append((logits.argmax(dim=1) == labels_N).float().mean().item())
    total = batches[0][0].new_tensor(weight * sum(losses))
    return MetaStep(
        loss=_Attach.apply(total, gradients, *tensors) if tensors else None,
        losses=tuple(losses),
        accuracies=tuple(accuracies),
        skipped=tuple(skipped),
        network_seconds=network_seconds,
    )
