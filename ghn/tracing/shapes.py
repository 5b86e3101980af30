"""Shapes of results without torch's help, for the few functions that most of a network's calls are.

Torch works out the shapes of meta tensors in Python, which takes up to milliseconds for a convolution, a norm or a sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_KEEP = frozenset({"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "gelu", "softmax", "sigmoid"})
_KEEP_OUT_OF_PLACE = frozenset({"relu", "relu6", "hardswish", "hardsigmoid", "silu", "dropout"})
_COMBINE = frozenset({"add", "mul", "sub", "div", "truediv"})


def result_without_arithmetic(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return the result of a call whose shape is known here, or ``None`` for all other calls (and for wrong ones)."""
    name = getattr(func, "__name__", "").removeprefix("__").removesuffix("__")
    if not args or not isinstance(args[0], Tensor) or "dtype" in kwargs or "out" in kwargs:
        return None
    shape: Sequence[int] | None = None
    if name in _KEEP:
        if args[0].is_floating_point() and not (name == "softmax" and len(args) > 2):
            shape = args[0].shape
    elif name in _KEEP_OUT_OF_PLACE:
        if not kwargs.get("inplace") and not any(argument is True for argument in args[1:]):
            shape = args[0].shape
    elif name in _COMBINE and len(args) == 2:
        other = args[1]
        if isinstance(other, Tensor) and other.shape == args[0].shape and other.dtype == args[0].dtype:
            shape = args[0].shape
    elif name == "conv2d" and len(args) == 7:
        shape = _convolution(*args)
    elif name == "linear" and len(args) >= 2 and args[0].ndim and args[0].shape[-1:] == args[1].shape[1:]:
        shape = (*args[0].shape[:-1], args[1].shape[0])
    return None if shape is None else torch.empty(shape, dtype=args[0].dtype, device=args[0].device)


def _convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> tuple[int, ...] | None:
    """Return the shape of ``conv2d`` as ``nn.Conv2d`` calls it; ``None`` for anything unusual."""
    sizes = (stride, padding, dilation)
    if x.ndim != 4 or x.shape[1] != weight.shape[1] * groups or not all(isinstance(s, tuple) for s in sizes):
        return None
    out = [
        (size + 2 * pad - apart * (kernel - 1) - 1) // step + 1
        for size, kernel, step, pad, apart in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    ]
    return (x.shape[0], weight.shape[0], *out) if min(out) > 0 else None
