"""A rank's share of a global step: the meta-gradient of the networks that fall to it. No collective operation in here.

A network that can not take part (out of memory, not finite, any other error) is left out and named; the others go on.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ghn.architecture import Architecture
from ghn.errors import StopRequestedError
from ghn.meta_step import MetaStep, Predictor, failure_of, meta_step

_UNITS = 2.0**44  # of a gradient in whole numbers; the sum of a meta-batch may reach 2**19
_MOST = 2.0**18


class Network(NamedTuple):
    """A network of the meta-batch: its position, itself, where its images come from, and the seed of its dropout."""

    position: int
    architecture: Architecture
    images: Callable[[], tuple[Tensor, Tensor]]
    seed: int


@dataclass(kw_only=True)
class Share:
    """What a rank's networks gave.

    Attributes:
        gradients: one tensor for each of the hypernetwork's parameters; whole numbers if the sum is to be exact, see
            :func:`from_whole`.
        losses, accuracies: by position in the meta-batch, of the networks that counted.
        skipped: name, index, seed and reason of each network that did not count.
        network_seconds: time in the networks' own forward and backward passes.

    """

    gradients: list[Tensor]
    losses: dict[int, float] = field(default_factory=dict)
    accuracies: dict[int, float] = field(default_factory=dict)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    network_seconds: float = 0.0

    def skip(self, network: Network, reason: str) -> None:
        """Count a network out."""
        self.skipped.append(
            {
                "architecture": network.architecture.label,
                "index": network.architecture.index,
                "seed": network.seed,
                "reason": reason,
            }
        )


@dataclass(frozen=True, kw_only=True)
class ShareSettings:
    """How a share is computed.

    Attributes:
        weight: factor on each network's loss: 1 / networks of the whole meta-batch.
        label_smoothing, network_clip, autocast: see :func:`ghn.meta_step.meta_step`.
        at_once: networks whose parameters are predicted together, at most; the gradients of several such parts are added up.
        exact: predict for one network at a time and add gradients up in whole numbers, so that the sum over all networks
            does not depend on who computes which.

    """

    weight: float
    label_smoothing: float = 0.0
    network_clip: float | None = None
    autocast: torch.dtype | None = None
    at_once: int | None = None
    exact: bool = False


def compute_share(
    hypernet: nn.Module,
    networks: Iterable[Network],
    settings: ShareSettings,
    *,
    predictor: Predictor | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Share:
    """Return the meta-gradient of some networks.

    Args:
        hypernet: whose parameters get the gradient.
        networks: any number; with none, the gradient is zero. If sums are exact, the next one is asked for when the one
            before it is done.
        settings: see there.
        predictor: what predicts; the hypernetwork itself by default.
        should_stop: asked before each network.

    Raises:
        StopRequestedError: if it was time to stop.

    """
    dtype = torch.int64 if settings.exact else None
    share = Share(gradients=[torch.zeros_like(p, dtype=dtype) for p in hypernet.parameters()])
    rest = iter(networks)
    while together := list(itertools.islice(rest, 1 if settings.exact else settings.at_once)):
        _add(share, hypernet, predictor or hypernet, together, settings, should_stop)
    return share


def _add(
    share: Share,
    hypernet: nn.Module,
    predictor: Predictor,
    networks: Sequence[Network],
    settings: ShareSettings,
    should_stop: Callable[[], bool],
) -> None:
    """Add the gradient of networks that are predicted together. If that fails as a whole, each is tried by itself."""
    try:
        outcome = meta_step(
            predictor,
            [network.architecture for network in networks],
            [network.images for network in networks],
            weight=settings.weight,
            label_smoothing=settings.label_smoothing,
            network_clip=settings.network_clip,
            seeds=[network.seed for network in networks],
            autocast=settings.autocast,
            should_stop=should_stop,
        )
        gradients = _gradients(hypernet, outcome, settings.exact)
        reason = "meta-gradient that is not finite, or beyond all bounds"
    except StopRequestedError:
        raise
    except Exception as error:  # whatever one rank alone runs into must not leave the others waiting
        outcome, gradients, reason = None, None, failure_of(error)
    if outcome is None or gradients is None:
        if len(networks) == 1:
            share.skip(networks[0], reason)
            return
        for network in networks:
            _add(share, hypernet, predictor, [network], settings, should_stop)
        return
    for total, gradient in zip(share.gradients, gradients, strict=True):
        if gradient is not None:
            total += gradient
    left_out = {skipped.at: skipped.reason for skipped in outcome.skipped}
    counted = [network for i, network in enumerate(networks) if i not in left_out]
    share.losses |= {n.position: loss for n, loss in zip(counted, outcome.losses, strict=True)}
    share.accuracies |= {n.position: accuracy for n, accuracy in zip(counted, outcome.accuracies, strict=True)}
    share.network_seconds += outcome.network_seconds
    for at, why in left_out.items():
        share.skip(networks[at], why)


def _gradients(hypernet: nn.Module, outcome: MetaStep, exact: bool) -> list[Tensor | None] | None:
    """Return the hypernetwork's gradient, ``None`` in place of all of it if it is not finite."""
    parameters = list(hypernet.parameters())
    if outcome.loss is None:
        return [None] * len(parameters)
    gradients: list[Tensor | None] = list(torch.autograd.grad(outcome.loss, parameters, allow_unused=True))
    norm = torch.stack(torch._foreach_norm([g for g in gradients if g is not None])).norm()
    if not torch.isfinite(norm) or (exact and norm > _MOST):
        return None
    return [to_whole(g) if exact and g is not None else g for g in gradients]


def to_whole(gradient: Tensor) -> Tensor:
    """Return a gradient as whole multiples (int64) of 2**-44, or 6e-14: their sums are exact in any order."""
    return (gradient * _UNITS).long()  # the factor is a power of two, so the product is exact in any precision


def from_whole(gradient: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the gradient that :func:`to_whole` made whole."""
    return (gradient.double() / _UNITS).to(dtype)
