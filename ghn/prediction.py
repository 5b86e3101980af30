"""Prediction is pure: a graph in, named tensors out. Loading them into a module is a separate step (:mod:`ghn.initialize`)."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ghn.errors import InputError
from ghn.graph import ArchitectureGraph, Node, ParameterRole
from ghn.hypernet import GHN


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Which trainable parameters are predicted, and which keep their own values and why.

    Attributes:
        predicted: names, in node order.
        kept: (name, reason), in alphabetical order.
        values: number of values in the predicted parameters.

    Examples:
        >>> print(Coverage(predicted=("0.weight",), kept=(("scale", "not between input and output"),), values=8))
        1 of 2 parameter tensors predicted (8 values)
          kept: scale (not between input and output)

    """

    predicted: tuple[str, ...]
    kept: tuple[tuple[str, str], ...]
    values: int

    def __str__(self) -> str:
        total = len(self.predicted) + len(self.kept)
        lines = [f"{len(self.predicted)} of {total} parameter tensors predicted ({self.values:,} values)"]
        lines += [f"  kept: {name} ({reason})" for name, reason in self.kept]
        return "\n".join(lines)


def coverage(graph: ArchitectureGraph) -> Coverage:
    """Return which of a network's trainable parameters its graph covers.

    Examples:
        >>> import torch
        >>> from ghn import trace
        >>> coverage(trace(torch.nn.Linear(4, 10), torch.zeros(1, 4))).values
        50

    """
    return Coverage(
        predicted=tuple(parameter.name for parameter in graph.parameters),
        kept=graph.kept,
        values=sum(math.prod(parameter.shape) for parameter in graph.parameters),
    )


def predict(
    hypernet: GHN,
    graph: ArchitectureGraph,
    *,
    allow_default: bool | str | Sequence[str] = False,
    allow_other_classes: bool = False,
) -> dict[str, Tensor]:
    """Predict all parameters of one network (paper, eq. 2); the same graph gives the same values each time.

    Args:
        hypernet: the hypernetwork; gradients flow into its weights unless called under ``torch.no_grad()``.
        graph: from ``Architecture.graph`` or :func:`ghn.trace`.
        allow_default: which trainable parameters may stay unpredicted (they keep their own values): none, all (``True``),
            or those that match a name or pattern such as ``"aux*"``, or one of several.
        allow_other_classes: predict a classifier of another width than the hypernetwork's as an ordinary layer.

    Returns:
        ``{parameter name: tensor}`` with the shapes that the graph says, in node order, on the hypernetwork's device.

    Raises:
        InputError: naming the first parameter that would keep its own value and is not allowed to, or the two numbers
            of classes if they differ.

    Examples:
        >>> from ghn import GHNConfig, sample_architectures
        >>> graph = sample_architectures("val", 1, seed=0)[0].graph
        >>> parameters = predict(GHN(GHNConfig()), graph)
        >>> all(parameters[name].shape == shape for name, shape, _ in graph.parameters)
        True

    """
    patterns = (
        ["*"] if allow_default is True else [allow_default] if isinstance(allow_default, str) else allow_default or ()
    )
    allowed = [re.compile(fnmatch.translate(pattern)).match for pattern in patterns]
    refused = [(name, why) for name, why in graph.kept if not any(match(name) for match in allowed)]
    if refused:
        name, reason = refused[0]
        raise InputError(
            f"{len(refused)} parameter(s) would not be predicted, the first is {name!r} ({reason}); "
            f"let them keep their own values with allow_default=[{name!r}], or all such with allow_default=True"
        )
    if allow_other_classes and graph.num_classes != hypernet.config.num_classes:
        graph = _without_classifier(graph, hypernet.config.num_classes)
    prediction: dict[str, Tensor] = hypernet([graph])[0]
    return prediction


def _without_classifier(graph: ArchitectureGraph, num_classes: int) -> ArchitectureGraph:
    """Turn the classifier into ordinary layers."""
    ordinary: dict[str, ParameterRole] = {"class_weight": "weight", "class_bias": "bias"}

    def change(node: Node) -> Node:
        parameters = tuple(p._replace(role=ordinary[p.role]) if p.role in ordinary else p for p in node.parameters)
        return node._replace(parameters=parameters)

    return dataclasses.replace(graph, nodes=tuple(change(node) for node in graph.nodes), num_classes=num_classes)
