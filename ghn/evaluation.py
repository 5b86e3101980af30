"""Evaluation of predicted networks on a split (paper, section 5): accuracy without any training of the networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ghn.architecture import Architecture
from ghn.hypernet import GHN
from ghn.prediction import predict

BATCHNORM_POLICY = "batch statistics"


@dataclass(frozen=True, kw_only=True)
class NetworkResult:
    """One network of a split; accuracies in percent.

    Attributes:
        split: the split it belongs to.
        index: its position there.
        nodes: nodes of its graph.
        parameters: predicted parameters.
        accuracy: top-1 with predicted parameters; a network whose logits are not finite scores 0.
        baseline: top-1 of the same network with its ordinary random initialization.
        failure: why the prediction failed, or "".
        top5: accuracy where the right class has to be among the five best answers (the paper's measure on ImageNet).

    """

    split: str
    index: int
    nodes: int
    parameters: int
    accuracy: float
    baseline: float
    failure: str = ""
    top5: float = 0.0


@dataclass(frozen=True, kw_only=True)
class SplitSummary:
    """Mean and spread over all networks of a split, failed ones counted in; accuracies in percent."""

    networks: int
    mean: float
    stderr: float
    best: float
    baseline_mean: float
    failed: int
    top5_mean: float = 0.0


def top1(logits_NK: Tensor, labels_N: Tensor) -> int:
    """Count correct answers; a row with any non-finite logit is wrong."""
    return top_k(logits_NK, labels_N, 1)


def top_k(logits_NK: Tensor, labels_N: Tensor, k: int) -> int:
    """Count rows whose label is among the k largest logits; a row with any non-finite logit is wrong."""
    finite = torch.isfinite(logits_NK).all(dim=1)
    best = logits_NK.topk(min(k, logits_NK.shape[1]), dim=1).indices
    return int(((best == labels_N[:, None]).any(dim=1) & finite).sum())


@torch.no_grad()
def accuracy(
    architecture: Architecture,
    parameters: Mapping[str, Tensor] | None,
    batches: Iterable[tuple[Tensor, Tensor]],
    seed: int = 0,
) -> float:
    """Return top-1 accuracy in percent; see :func:`accuracies`."""
    return accuracies(architecture, parameters, batches, seed)[0]


@torch.no_grad()
def accuracies(
    architecture: Architecture,
    parameters: Mapping[str, Tensor] | None,
    batches: Iterable[tuple[Tensor, Tensor]],
    seed: int = 0,
) -> tuple[float, float]:
    """Return top-1 and top-5 accuracy in percent of one network in evaluation mode, BatchNorm using batch statistics.

    Args:
        architecture: the network.
        parameters: its predicted parameters, or ``None`` for its ordinary random initialization.
        batches: (images (N, 3, S, S), class numbers (N,)).
        seed: of the random initialization.

    """
    if parameters is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            parameters = dict(architecture.network().named_parameters())
    correct, among_five, total = 0, 0, 0
    for images, labels in batches:
        logits = architecture.run(parameters, images, training=False)
        correct += top1(logits, labels)
        among_five += top_k(logits, labels, 5)
        total += len(labels)
    return 100.0 * correct / max(total, 1), 100.0 * among_five / max(total, 1)


@torch.no_grad()
def evaluate_networks(
    hypernet: GHN,
    architectures: Sequence[Architecture],
    batches: Sequence[tuple[Tensor, Tensor]],
    *,
    seed: int = 0,
    on_result: Callable[[NetworkResult], None] | None = None,
) -> list[NetworkResult]:
    """Evaluate predicted parameters and the random-initialization baseline on the same networks and images.

    Args:
        hypernet: the hypernetwork under test.
        architectures: networks of any splits.
        batches: the test images.
        seed: the baseline of architecture ``index`` is initialized from ``seed + index``.
        on_result: called after each network (for progress).

    """
    results = []
    for architecture in architectures:
        failure = ""
        prediction = predict(hypernet, architecture.graph)
        if not all(torch.isfinite(tensor).all() for tensor in prediction.values()):
            failure = "non-finite parameters"
        predicted, top5 = (0.0, 0.0) if failure else accuracies(architecture, prediction, batches)
        result = NetworkResult(
            split=architecture.split,
            index=architecture.index,
            nodes=len(architecture.graph),
            parameters=sum(tensor.numel() for tensor in prediction.values()),
            accuracy=predicted,
            baseline=accuracy(architecture, None, batches, seed=seed + architecture.index),
            failure=failure,
            top5=top5,
        )
        results.append(result)
        if on_result:
            on_result(result)
    return results


def summarize(results: Sequence[NetworkResult]) -> SplitSummary:
    """Return mean, standard error of the mean, best and baseline mean over the networks of one split (at least one)."""
    scores = [result.accuracy for result in results]
    n = len(scores)
    mean = sum(scores) / n
    variance = sum((score - mean) ** 2 for score in scores) / (n - 1) if n > 1 else 0.0
    return SplitSummary(
        networks=n,
        mean=mean,
        stderr=math.sqrt(variance / n),
        best=max(scores),
        baseline_mean=sum(result.baseline for result in results) / n,
        failed=sum(bool(result.failure) for result in results),
        top5_mean=sum(result.top5 for result in results) / n,
    )
