"""Prediction is pure: a graph in, named tensors out; running a network with them is a separate step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ghn.errors import InputError
from ghn.graph import ArchitectureGraph
from ghn.hypernet import GHN


def predict(hypernet: GHN, graph: ArchitectureGraph, *, strict: bool = True) -> dict[str, Tensor]:
    """Predict all parameters of one network (paper, eq. 2).

    Args:
        hypernet: the hypernetwork; gradients flow into its weights unless called under ``torch.no_grad()``.
        graph: from ``Architecture.graph`` or :func:`ghn.trace`.
        strict: refuse graphs with trainable parameters that no node covers; ``False`` leaves those out.

    Returns:
        ``{parameter name: tensor}`` with the shapes that the graph says, in node order, on the hypernetwork's device.

    Raises:
        InputError: if the number of classes differs from the hypernetwork's, or, when strict, naming the first
            parameter that would keep its own value.

    """
    if strict and graph.kept:
        name, reason = graph.kept[0]
        raise InputError(
            f"{len(graph.kept)} parameter(s) would not be predicted, the first is {name!r} ({reason}); "
            "pass strict=False to let them keep their own values"
        )
    prediction: dict[str, Tensor] = hypernet([graph])[0]
    return prediction


def run_network(network: nn.Module, parameters: Mapping[str, Tensor], images_NCHW: Tensor) -> Tensor:
    """Return the logits (N, classes) of a network run with the given parameters instead of its own.

    The network may be built on the meta device; its own parameters are not changed.
    """
    logits: Tensor = torch.func.functional_call(network, dict(parameters), (images_NCHW,))
    return logits
