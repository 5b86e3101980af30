"""Ordinary training of one network with SGD, to say how many steps of it a prediction is worth (paper, section 5)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ghn.architecture import Architecture
from ghn.evaluation import Metric, Score, random_parameters, score


@dataclass(frozen=True, kw_only=True)
class SGDSettings:
    """Optimization; the defaults are those with which the published code trains single networks on CIFAR-10.

    The rate is constant: k steps are then the beginning of any longer training.
    """

    lr: float = 0.025
    momentum: float = 0.9
    weight_decay: float = 3e-4
    clip: float = 5.0
    batch: int = 96


def step_grid(steps: int) -> tuple[int, ...]:
    """Return the numbers of steps at which accuracy is measured: 0, 1, 2, 5, 10, 20, 50, ... and ``steps``."""
    grid = [factor * 10**power for power in range(len(str(steps))) for factor in (1, 2, 5)]
    return (0, *(step for step in grid if step < steps), steps)


def sgd_scores(
    architecture: Architecture,
    training: Iterator[tuple[Tensor, Tensor]],
    batches: Iterable[tuple[Tensor, Tensor]],
    steps: Sequence[int],
    *,
    seed: int,
    settings: SGDSettings | None = None,
) -> list[Score]:
    """Train a network from its ordinary initialization and measure it after so many steps.

    Args:
        architecture: the network; batch normalization uses batch statistics in training and when it is measured.
        training: endless batches of training images (N, 3, S, S) and class numbers (N,).
        batches: the test images, which can be gone over again and again.
        steps: ascending numbers of steps, see :func:`step_grid`.
        seed: of initialization and dropout.
        settings: of the optimization.

    Returns:
        A score for each of the numbers of steps; all that follow a step with a non-finite loss are failures.

    """
    settings = settings or SGDSettings()
    parameters = {name: t.requires_grad_() for name, t in random_parameters(architecture, seed).items()}
    optimizer = torch.optim.SGD(
        parameters.values(), lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    scores: list[Score] = []
    done = 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for target in steps:
            while done < target:
                images, labels = next(training)
                with torch.enable_grad():
                    loss = F.cross_entropy(architecture.run(parameters, images, training=True), labels)
                    if not math.isfinite(loss.item()):
                        failed = Score(top1=0.0, top5=0.0, failure=f"non-finite loss at step {done}")
                        return scores + [failed] * (len(steps) - len(scores))
                    optimizer.zero_grad()
                    loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters.values(), settings.clip)
                optimizer.step()
                done += 1
            scores.append(score(architecture, parameters, batches))
    return scores


def steps_worth(
    predicted: Sequence[Score], curves: Iterable[Sequence[Score]], steps: Sequence[int], metric: Metric = "top1"
) -> float | None:
    """Return after how many SGD steps trained networks are, on average, as accurate as predicted ones.

    Between two measured numbers of steps the mean accuracy is taken as linear.

    Args:
        predicted: a score for each network.
        curves: the scores of :func:`sgd_scores` for each of the same networks.
        steps: the numbers of steps that those belong to.
        metric: which accuracy.

    Returns:
        Steps, or ``None`` if the networks are less accurate than predicted ones even after the last step.

    """
    goal = sum(getattr(item, metric) for item in predicted) / len(predicted)
    table = [[getattr(item, metric) for item in curve] for curve in curves]
    means = [sum(column) / len(table) for column in zip(*table, strict=True)]
    for i, mean in enumerate(means):
        if mean >= goal:
            if i == 0 or mean == means[i - 1]:
                return float(steps[i])
            share = (goal - means[i - 1]) / (mean - means[i - 1])
            return steps[i - 1] + share * (steps[i] - steps[i - 1])
    return None
