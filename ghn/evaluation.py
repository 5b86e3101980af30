"""Evaluation of predicted networks on a split (paper, section 5): accuracy without any training of the networks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ghn.architecture import Architecture
from ghn.hypernet import GHN
from ghn.prediction import predict

BATCHNORM_POLICY = "batch statistics"
PREDICTED, RANDOM = "predicted", "random"

Metric = Literal["top1", "top5"]


@dataclass(frozen=True, kw_only=True)
class Score:
    """Accuracy of one network with one set of parameters, in percent.

    Attributes:
        top1: images whose class got the largest logit.
        top5: images whose class is among the five largest (the paper's measure on ImageNet).
        failure: why the network could not be run, or ""; then both accuracies are 0.

    """

    top1: float
    top5: float
    failure: str = ""


@dataclass(frozen=True, kw_only=True)
class NetworkFacts:
    """How large a network is.

    Attributes:
        nodes: of its graph.
        depth: nodes with parameters on the graph's longest path.
        width: output channels, on average over its weights but the classifier's.
        parameters: values that are predicted.

    """

    nodes: int
    depth: int
    width: float
    parameters: int


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Accuracies of one method over all networks of a split, failed ones counted in, in percent."""

    mean: float
    stderr: float
    best: float


def top_k(logits_NK: Tensor, labels_N: Tensor, k: int) -> int:
    """Count rows whose label is among the k largest logits; a row with any non-finite logit is wrong."""
    finite = torch.isfinite(logits_NK).all(dim=1)
    best = logits_NK.topk(min(k, logits_NK.shape[1]), dim=1).indices
    return int(((best == labels_N[:, None]).any(dim=1) & finite).sum())


@torch.no_grad()
def score(
    architecture: Architecture, parameters: Mapping[str, Tensor], batches: Iterable[tuple[Tensor, Tensor]]
) -> Score:
    """Measure one network in evaluation mode, batch normalization using batch statistics.

    Args:
        architecture: the network.
        parameters: all its parameters by name.
        batches: (images (N, 3, S, S), class numbers (N,)).

    """
    correct, among_five, total = 0, 0, 0
    for images, labels in batches:
        logits = architecture.run(parameters, images, training=False)
        correct += top_k(logits, labels, 1)
        among_five += top_k(logits, labels, 5)
        total += len(labels)
    return Score(top1=100.0 * correct / max(total, 1), top5=100.0 * among_five / max(total, 1))


@torch.no_grad()
def score_predicted(hypernet: GHN, architecture: Architecture, batches: Iterable[tuple[Tensor, Tensor]]) -> Score:
    """Measure a network with predicted parameters; one whose parameters are not finite fails."""
    prediction = predict(hypernet, architecture.graph)
    if not all(torch.isfinite(tensor).all() for tensor in prediction.values()):
        return Score(top1=0.0, top5=0.0, failure="non-finite parameters")
    return score(architecture, prediction, batches)


def score_random(architecture: Architecture, batches: Iterable[tuple[Tensor, Tensor]], seed: int) -> Score:
    """Measure a network with its ordinary random initialization, drawn from a seed."""
    return score(architecture, random_parameters(architecture, seed), batches)


def random_parameters(architecture: Architecture, seed: int) -> dict[str, Tensor]:
    """Return a network's ordinary random initialization; the caller's random numbers are left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {name: tensor.detach() for name, tensor in architecture.network().named_parameters()}


def network_facts(architecture: Architecture) -> NetworkFacts:
    """Return how large a network is."""
    graph = architecture.graph
    channels = [p.shape[0] for node in graph.nodes for p in node.parameters if p.role == "weight" and len(p.shape) > 1]
    longest = [0] * len(graph)
    for u, v in graph.edges:  # sorted by v, so longest[u] is final
        longest[v] = max(longest[v], longest[u] + bool(graph.nodes[v].parameters))
    return NetworkFacts(
        nodes=len(graph),
        depth=longest[-1],
        width=round(sum(channels) / len(channels), 2) if channels else 0.0,
        parameters=sum(math.prod(p.shape) for p in graph.parameters),
    )


def summarize(scores: Sequence[Score], metric: Metric = "top1") -> Summary:
    """Return mean, standard error of the mean and best over the networks of one split (at least one)."""
    values = [getattr(item, metric) for item in scores]
    n = len(values)
    mean = sum(values) / n
    variance = sum((value - mean) ** 2 for value in values) / (n - 1) if n > 1 else 0.0
    return Summary(mean=mean, stderr=math.sqrt(variance / n), best=max(values))
